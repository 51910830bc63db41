import re
import subprocess
import sys

from workflow_tools import ROOT, jobs_in, plan, relatives, rules

from dfkd.methods import METHODS

TARGET = "results/cifar10_wrn402_wrn161.json"

# Snakemake in a process in which torch cannot be imported and no connection can be opened.
FENCED = """
import socket, sys

class Fence:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "diffusers", "transformers"):
            raise AssertionError(f"{name} was imported while the DAG was built")

def refuse(*arguments):
    raise AssertionError("a connection was opened while the DAG was built")

sys.meta_path.insert(0, Fence())
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv[0] = "snakemake"
from snakemake.cli import main
main()
"""
JOBS = {
    "prepare": 1, "teacher": 1, "teacher_report": 1, "init_shard": 1, "init_bank": 1, "init_page": 1, "init_curves": 1,
    "augment": 1, "variations_page": 1, "variations_curves": 1,
    "distill": 1, "evaluate": 1, "run_pictures": 1, "run_bank_page": 1, "result": 1, "default_result": 1,
}  # fmt: skip


def test_the_plan_needs_no_network_and_no_torch(workflow):
    done = workflow("--dry-run", "--cores", "1", TARGET, program=("-c", FENCED))
    assert done.returncode == 0, done.stdout
    assert jobs_in(done.stdout) == JOBS


def test_mistakes_end_in_one_sentence_and_status_2(workflow):
    mistakes = {
        "unknown data set 'cifar1'; the nearest known: cifar10": plan("results/cifar1_wrn402_wrn161.json"),
        "unknown method 'dad'; the nearest known: dfad, dda": plan("results/dad/cifar10_wrn402_wrn161.json"),
        f"did you mean {TARGET}?": plan("results/cifar10_wrn40_2_wrn16_1.json"),
        "unknown key 'seed'; the nearest known: seeds": plan(TARGET, config=["seed=3"]),
        "teacher settings: epochs: ": plan(TARGET, config=["teacher={defaults: {epochs: zero}}"]),
        "absent.pth: no such file": plan(TARGET, config=["imported={digits_wrn162: absent.pth}"]),
    }
    for (status, output), sentence in zip(workflow.batch(list(mistakes.values())), mistakes, strict=True):
        assert status == 2, output
        last = output.strip().splitlines()[-1]
        assert last.startswith("dfkd: ")
        assert sentence in last
        assert "Traceback" not in output
    assert not (workflow.folder / "results").exists()


def test_the_config_decides_the_jobs(workflow):
    (workflow.folder / "mine.pth").touch()
    (workflow.folder / "more.yaml").write_text("seeds: [0, 1, 2]\nscatter: 4\n")
    imported = plan("results/digits_wrn162_wrn161.json", config=["imported={digits_wrn162: mine.pth}"])
    answers = workflow.batch([imported, ["--configfile", "more.yaml", *plan(TARGET)]])
    assert [status for status, _ in answers] == [0, 0]
    assert jobs_in(answers[0][1]) == {"import_teacher": 1, **{name: 1 for name in JOBS if name != "teacher"}}
    per_seed = dict.fromkeys(["distill", "evaluate", "run_pictures", "run_bank_page"], 3)
    assert jobs_in(answers[1][1]) == JOBS | {"init_shard": 4, **per_seed}


def on(dataset, *methods):
    return [f"results/{method}/{dataset}_wrn162_wrn161.json" for method in methods]


def test_whoever_trains_on_images_that_stay_packed_is_given_them(workflow):
    (workflow.folder / "my pets.lmdb").touch()
    entry = "{source: 'packed:my pets.lmdb', keep_packed: true, image_size: 32, mean: [0, 0, 0], std: [1, 1, 1]}"
    (workflow.folder / "more.yaml").write_text(f"datasets: {{pets: {entry}}}\n")
    pets = plan("results/pets_wrn162_wrn161.json", "results/scratch/pets_wrn161.json", *on("pets", "kd", "kd-ab", "real"))
    transfer = plan(*on("digits", "kd"), config=["methods={kd: {defaults: {transfer_set: 'dataset:pets'}}}"])
    words = ["--configfile", "more.yaml", "--printshellcmds"]
    answers = workflow.batch([[*words, *pets], [*words, *transfer]])
    told = []
    for status, output in answers:
        assert status == 0, output
        given = [line for line in output.splitlines() if "--packed 'my pets.lmdb' " in line]
        found = [re.search(r"dfkd (teacher train|distill|first-stage) .*?--(?:model|method) (\S+)", line) for line in given]
        told.append(sorted(one.groups() for one in found))
    stages = [("distill", "kd"), ("distill", "kd-ab"), ("distill", "real"), ("first-stage", "kd-ab")]
    assert told == [[*stages, ("teacher train", "wrn161"), ("teacher train", "wrn162")], [("distill", "kd")]]
    (workflow.folder / "my pets.lmdb").unlink()
    ((status, output),) = workflow.batch([["--configfile", "more.yaml", *pets]])
    assert status == 0, output  # `prepare` says what is wrong


def test_a_method_has_the_jobs_that_it_needs(workflow):
    below = {"evaluate": 1, "run_pictures": 1, "run_bank_page": 1, "result": 1}
    teacher = {"prepare": 1, "teacher": 1, "teacher_report": 1}
    bank = {"init_shard": 1, "init_bank": 1, "init_page": 1, "init_curves": 1}
    wanted = {
        "csd": {**teacher, **bank, "distill": 1, **below},
        "dafl": {**teacher, "distill_generator": 1, **below},
        "nayer": {**teacher, "distill": 1, **below},
        "real": {**teacher, "distill_transfer": 1, **below},
        "kd": {**teacher, "distill_transfer": 1, **below},
        "kd-at": {**teacher, "distill_transfer": 1, **below},
        "kd-ab": {**teacher, "first_stage": 1, "distill_two_stage": 1, **below},
    }
    answers = workflow.batch([plan(f"results/{method}/digits_wrn162_wrn161.json") for method in wanted])
    assert [jobs_in(output) for _, output in answers] == list(wanted.values())


def test_no_method_takes_the_training_split_but_the_control_on_real_images(workflow):
    """Of every job of every method: its inputs (nothing is there yet, so all are named as a reason) and its command."""
    targets = [f"results/{method}/digits_wrn162_wrn161.json" for method in METHODS]
    done = workflow("--cores", "1", "--dry-run", "--printshellcmds", "--", *targets)
    assert done.returncode == 0, done.stdout
    jobs = re.findall(r"^Job \d+: .*\nReason: (.*)\nShell command: (?:DFKD_GPUS=\d )?(.*)$", done.stdout, re.MULTILINE)
    assert len(jobs) == sum(jobs_in(done.stdout).values())
    takers, methods = set(), set()
    for reason, command in jobs:
        stage = " ".join(command.split()[1:3])
        if stage.startswith("distill"):
            (method,) = re.findall(r"--method (\S+)", command)
            methods.add(method)
            stage = f"distill {method}"
            assert "data/digits.test.h5" in reason  # the reason does name the inputs
            assert ("generator.safetensors" in reason) is METHODS[method].generator
            assert "--cache results/caches --cache-mb 4000 " in command
        if re.search(r"data/\w+\.h5", reason + command):
            takers.add(stage)
    assert methods == set(METHODS)
    on_images = {name for name, method in METHODS.items() if method.real or method.transfer}
    assert on_images == {"real", "kd", "kdrefine", *(name for name in METHODS if name.startswith("kd-"))}
    assert takers == {"prepare digits", "teacher train", "first-stage --teacher", *(f"distill {name}" for name in on_images)}


def test_a_transfer_set_decides_what_is_read(workflow):
    target = "results/kd/digits_wrn162_wrn161.json"
    (workflow.folder / "pictures").mkdir()

    def on(transfer):
        return plan(target, config=[f"methods={{kd: {{defaults: {{transfer_set: '{transfer}'}}}}}}"])

    answers = workflow.batch(
        [on("bank:variations"), on("bank:mine.lmdb"), on("folder:pictures"), on("dataset:mnist"), on("noise")]
    )
    (workflow.folder / "pictures").rmdir()
    assert [status for status, _ in answers][:1] + [status for status, _ in answers][2:] == [0, 0, 0, 2]
    assert {"init_shard", "augment"} < set(jobs_in(answers[0][1]))
    assert "mine.lmdb" in answers[1][1]  # missing, and named
    assert answers[1][0] != 0
    assert "init_shard" not in jobs_in(answers[2][1])
    assert jobs_in(answers[3][1])["prepare"] == 2
    assert "expected train, dataset:NAME" in answers[4][1]


def test_a_student_from_scratch_needs_no_teacher(workflow):
    wanted = {"prepare": 1, "scratch": 1, "evaluate_scratch": 1, "scratch_pictures": 1, "result_scratch": 1}
    good, wrong, long = workflow.batch(
        [plan(f"results/scratch/{name}.json") for name in ("digits_wrn161", "digits_wrn16", "digits_wrn162_wrn161")]
    )
    assert (good[0], jobs_in(good[1])) == (0, wanted)
    assert wrong[0] == 2
    assert "unknown model 'wrn16'" in wrong[1]
    assert long[0] == 2
    assert "results/scratch/DATASET_STUDENT.json" in long[1]


def test_lint_is_clean(workflow):
    done = workflow("--lint")
    assert done.returncode == 0, done.stdout


def test_format_is_clean():
    command = [sys.executable, "-m", "snakefmt", "--check", str(ROOT / "workflow")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_relative_of_a_rule_has_its_files_and_more():
    files = re.compile(r"^        (\w+)=(.*),$", re.MULTILINE)
    added = {
        "distill_generator": ("output", {"generator", "generator_card"}),
        "distill_transfer": ("input", {"data", "packed"}),
        "distill_two_stage": ("input", {"data", "packed", "first_stage", "first_stage_card"}),
    }
    assert set(relatives()) == set(added)
    for name, (section, names) in added.items():
        own, changes = relatives()[name]
        parts = [re.search(rf"^    {section}:\n((?:        .*\n)+)", text, re.MULTILINE)[1] for text in (rules()[own], changes)]
        old, new = (dict(files.findall(part)) for part in parts)
        assert {key: value for key, value in new.items() if key not in names} == old
        assert set(new) - set(old) == names


def test_every_rule_states_its_contract():
    for name, text in rules().items():
        stated = set(re.findall(r"^    (\w+):", text, re.MULTILINE))
        assert stated >= {"input", "output", "log", "conda", "message", "shell"}, name
        if name != "default_result":
            assert stated >= {"benchmark", "threads", "resources"}, name
            assert re.search(r"mem_mb=\d+,\s+runtime=\d+", text), name
        assert ":q}" in text
        assert not re.search(r"\{(input|output|params|log|wildcards)[.\w]*\}", text.split("shell:")[1]), f"{name}: unquoted"
