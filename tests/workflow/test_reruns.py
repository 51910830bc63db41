"""What reruns when, on the DAG alone: the stages are stubs that write their commands."""

import re

import pytest
from workflow_tools import STUB, Workflow, jobs_in, plan

TARGETS = ("results/digits_wrn162_wrn161.json", "results/cifar10_wrn402_wrn161.json")
BELOW_DISTILL = {"distill": 1, "evaluate": 1, "run_pictures": 1, "run_bank_page": 1, "result": 1, "default_result": 1}
BELOW_BANK = {"augment": 1, "variations_page": 1, "variations_curves": 1, **BELOW_DISTILL}
BELOW_INIT = {"init_shard": 1, "init_bank": 1, "init_page": 1, "init_curves": 1, **BELOW_BANK}
BELOW_TEACHER = {"teacher_report": 1, **BELOW_INIT}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reruns")
    workflow = Workflow(folder, folder / "bin", STUB)
    jobs = workflow.run(*TARGETS)
    assert jobs == dict.fromkeys(["prepare", "teacher", *BELOW_TEACHER], 2)
    return workflow


def test_a_second_invocation_runs_nothing(finished):
    done = finished("--cores", "2", *TARGETS)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


CHANGES = {
    "datasets={digits: {crop_padding: 3}}": {"prepare": 1, "teacher": 1, **BELOW_TEACHER},
    "teacher={overrides: {digits: {epochs: 2100}}}": {"teacher": 1, **BELOW_TEACHER},
    "init_bank={overrides: {digits_wrn162: {steps: 2100}}}": BELOW_INIT,
    "augment={overrides: {digits: {threshold: 0.123}}}": BELOW_BANK,
    "methods={dda: {overrides: {digits_wrn162_wrn161: {epochs: 2100}}}}": BELOW_DISTILL,
    "evaluate={overrides: {digits: {ece_bins: 21}}}": {
        key: 1 for key in BELOW_DISTILL if key not in ("distill", "run_bank_page")
    },
    "seeds=[0,1]": dict.fromkeys(BELOW_DISTILL, 2),
    "teacher={overrides: {svhn: {epochs: 2100}}}": {},
}


def test_a_change_reruns_just_what_depends_on_it(finished):
    answers = finished.batch([plan(*TARGETS, config=[change]) for change in CHANGES])
    assert [status for status, _ in answers] == [0] * len(CHANGES)
    assert {change: jobs_in(output) for change, (_, output) in zip(CHANGES, answers, strict=True)} == CHANGES


def test_nothing_below_the_teacher_takes_the_training_split(finished):
    """On the DAG that was run: the recorded inputs of every output, and the commands themselves."""
    done = finished("--cores", "1", "--detailed-summary", *TARGETS)
    header, *rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    column = {name: header.index(name) for name in ("output_file", "rule", "input-file(s)", "shellcmd")}
    training = re.compile(r"data/\w+\.h5")
    readers = {}
    for row in rows:
        inputs, command = row[column["input-file(s)"]].split(","), row[column["shellcmd"]]
        assert row[column["rule"]] == "prepare" or inputs != ["-"]
        if any(training.fullmatch(path) for path in inputs):
            readers.setdefault(row[column["rule"]], set()).add(row[column["output_file"]])
        elif row[column["rule"]] != "prepare":
            assert not training.search(command), command
    assert set(readers) == {"teacher"}
    assert {path.split("/")[2] for path in readers["teacher"]} == {"digits_wrn162", "cifar10_wrn402"}
    calls = (finished.folder / "calls.txt").read_text().splitlines()
    assert {call.split()[0] for call in calls if training.search(call)} == {"prepare", "teacher"}
    assert len(calls) == 2 * 15  # prepare … result, page and curves of each bank, reports of teacher and run


def test_a_method_without_banks_does_not_depend_on_their_settings(finished):
    targets = [f"results/{method}/digits_wrn162_wrn161.json" for method in ("dafl", "real")]
    jobs = finished.run(*targets)
    below = {"evaluate": 2, "run_pictures": 2, "run_bank_page": 2, "result": 2}
    assert jobs == {"distill_generator": 1, "distill_transfer": 1, **below}
    changes = {
        "init_bank={overrides: {digits: {steps: 2100}}}": {},
        "augment={overrides: {digits: {threshold: 0.123}}}": {},
        "methods={dda: {overrides: {digits: {epochs: 2100}}}}": {},
        "methods={dafl: {overrides: {digits: {epochs: 2100}}}}": {"distill_generator": 1, **dict.fromkeys(below, 1)},
        "teacher={overrides: {digits: {epochs: 2100}}}": {
            "teacher": 1,
            "teacher_report": 1,
            "distill_generator": 1,
            "distill_transfer": 1,
            **below,
        },
    }
    answers = finished.batch([plan(*targets, config=[change]) for change in changes])
    assert {change: jobs_in(output) for change, (_, output) in zip(changes, answers, strict=True)} == changes
    training = re.compile(r"data/\w+\.h5")
    calls = [call.split() for call in (finished.folder / "calls.txt").read_text().splitlines() if training.search(call)]
    runs = [call for call in calls if call[0] == "distill"]
    assert {call[call.index("--method") + 1] for call in runs} == {"real"}
    assert {call[call.index("--data") + 1] for call in runs} == {"data/digits.h5"}


def test_a_failed_stage_shows_its_sentence_and_leaves_no_output(finished):
    (finished.folder / "fail").touch()
    try:
        done = finished("--cores", "2", "--", "results/digits_wrn162_lenet5.json")
    finally:
        (finished.folder / "fail").unlink()
    assert done.returncode == 1
    assert "dfkd: told to fail." in done.stdout
    assert not list(finished.folder.glob("results/runs/dda/digits_wrn162_lenet5/seed0/*"))
    assert not (finished.folder / "results" / "digits_wrn162_lenet5.json").exists()
