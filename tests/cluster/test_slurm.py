"""The digits workflow on a real SLURM, through the shipped profile: jobs that end early, and what comes of them."""

import itertools
import json
import re

import pytest
import slurm
from digits import FILES, PAIR, RESULT, SCRATCH, SCRATCH_FILES, THREADS, lasting, workflow_in
from submission import Submission, profile, steps

pytestmark = pytest.mark.timeout(2400)

# What is laid over the shipped profile: quick looks at the queue, and limits that jobs of minutes meet.
OVERLAY = {
    "slurm-init-seconds-before-status-checks": 1,
    "latency-wait": 5,
    "set-threads": THREADS,
    "group-components": {"evaluation": 3},
    "set-resources": {
        "teacher": {"runtime": "4 if attempt == 1 else 20"},  # less the two minutes of --signal
        "scratch": {"runtime": "2 if attempt == 1 else 20", "slurm_extra": "''"},  # and this one without a warning
        "augment": {"mem_mb": "1000 * 3 ** (attempt - 1)"},
    },
}
DONE = {
    ("teacher", 1): "SIGTERM two minutes before its limit (`--signal`)",
    ("scratch", 1): "at its limit",
    ("scratch", 2): "`scancel`",
    ("augment", 1): "took 1,200 MB more than it has to",
    ("distill", 1): "its node was drained, which it did not mind, then went down",
    ("distill", 2): "waited until the node came back",
    ("merge", 1): "init_bank, init_curves",
    ("pages", 1): "teacher_report, variations_page, variations_curves",
    ("evaluation", 1): "evaluate, run_pictures, run_bank_page, evaluate_scratch, scratch_pictures",
}


@pytest.fixture(scope="module")
def disturbed(cluster, artefacts, tmp_path_factory):
    """The targets on the cluster, where jobs outlive their time, are killed, take too much memory and lose their node."""
    workflow = workflow_in(tmp_path_factory.mktemp("cluster") / "work")
    folder = workflow.folder
    teacher, scratch, student = (folder / f"slow-{of}" for of in ("teacher-told162", "teacher-told161", "distill-told161"))
    for file, seconds in ((teacher, "3"), (scratch, "4"), (student, "0.3")):
        file.write_text(seconds)
    (folder / "large-augment-told162").write_text("1200")
    with Submission(workflow, profile(folder / "profile", OVERLAY), RESULT, SCRATCH) as run:
        run.reach("teacher", "FAILED")
        teacher.unlink()
        run.reach("scratch", "TIMEOUT")
        run.wait(lambda: len(run.logs["scratch"]) == 2 and steps(run.logs["scratch"][1]), "scratch goes on")
        slurm.ask("scancel", run.jobs("scratch")[1]["JobId"])
        run.reach("scratch", "TIMEOUT", "CANCELLED")
        scratch.unlink()
        run.reach("augment", "FAILED", "COMPLETED")
        run.wait(lambda: [*folder.glob("results/checkpoints/distill/*/*/state.pt")], "an epoch of the student is done")
        student.write_text("3")
        run.wait(lambda: run.running() == ["distill"], "the student is all that runs")
        slurm.set_node("DRAIN")
        drained = slurm.node(), run.running()
        slurm.crash_node(run.jobs("distill")[0])
        run.reach("distill", "NODE_FAIL", "PENDING")
        student.unlink()
        slurm.set_node("RESUME")
        outcome = run.finish()
    outcome.drained = drained
    outcome.write(artefacts / "slurm_jobs.md", DONE)
    return outcome


def test_every_target_is_made_and_nothing_is_left_to_do(disturbed):
    assert disturbed.status == 0, disturbed.said
    assert disturbed.states() == {
        "prepare": ["COMPLETED"],
        "teacher": ["FAILED", "COMPLETED"],
        "scratch": ["TIMEOUT", "CANCELLED", "COMPLETED"],
        "init_shard": ["COMPLETED"],
        "merge": ["COMPLETED"],
        "init_page": ["COMPLETED"],
        "pages": ["COMPLETED"],
        "augment": ["FAILED", "COMPLETED"],
        "distill": ["NODE_FAIL", "COMPLETED"],
        "evaluation": ["COMPLETED"],
    }
    again = disturbed.workflow("--cores", "1", "--dry-run", "--", RESULT, SCRATCH)
    assert "Nothing to be done" in again.stdout


def test_each_end_is_told(disturbed):
    for rule, states in {"teacher": ["FAILED"], "scratch": ["TIMEOUT", "CANCELLED"], "augment": ["FAILED"]}.items():
        for job, state in zip(disturbed.rules[rule], states, strict=False):
            assert f"SLURM-job '{job['JobId']}' failed, SLURM status is: '{state}'" in disturbed.said
    assert f"SLURM-job '{disturbed.rules['distill'][0]['JobId']}' failed due to a node failure" in disturbed.said
    assert "stopped by signal 15; run the same command again to continue" in disturbed.logs["teacher"][0]
    failed = disturbed.rules["augment"][0]["JobId"]
    (log,) = disturbed.workflow.folder.glob(f"logs/slurm/rule_augment/**/{failed}.log")
    assert "memory limit" in log.read_text()


def test_a_drained_node_goes_on_with_its_job(disturbed):
    state, running = disturbed.drained
    assert "DRAIN" in state
    assert running == ["distill"]


def test_memory_and_time_grow_with_the_attempts(disturbed):
    def asked(rule):
        return [(job["MinMemoryNode"], job["TimeLimit"]) for job in disturbed.rules[rule]]

    assert asked("teacher") == [("8000M", "00:04:00"), ("16000M", "00:20:00")]
    assert asked("scratch") == [("8000M", "00:02:00"), ("16000M", "00:20:00"), ("24000M", "00:20:00")]
    assert asked("distill") == [("16000M", "1-00:00:00"), ("32000M", "2-00:00:00")]
    assert asked("merge") == [("2000M", "00:40:00")]  # of both rules: the larger memory, the sum of the times
    assert asked("init_shard") == [("8000M", "1-00:00:00")]


def test_an_attempt_goes_on_where_the_last_one_ended(disturbed):
    for rule in ("teacher", "scratch", "distill"):
        attempts = disturbed.logs[rule]
        assert len(attempts) == len(disturbed.rules[rule])
        assert "resuming from" not in attempts[0]
        for before, after in itertools.pairwise(attempts):
            assert "resuming from results/checkpoints/" in after
            assert steps(after)[0] > steps(before)[1], rule
    checkpoints = disturbed.workflow.folder / "results" / "checkpoints"
    assert not [path for path in checkpoints.rglob("*") if path.is_file()]


def test_each_job_has_a_gpu_of_its_own(disturbed):
    seen = {rule: re.findall(r"sees GPUs (.*)", "".join(logs)) for rule, logs in disturbed.logs.items()}
    assert {seen["teacher"][0], seen["scratch"][0]} == {"0", "1"}  # these ran at the same time
    assert not [rule for rule, logs in disturbed.logs.items() if "computing on" in "".join(logs)]  # from Slurm, not by locks
    with_gpu = [rule for rule, jobs in disturbed.rules.items() if jobs[0].get("TresPerJob", "").endswith("gpu:1")]
    assert sorted(with_gpu) == ["augment", "distill", "evaluation", "init_page", "init_shard", "pages", "scratch", "teacher"]


def test_the_results_are_those_of_the_local_run(disturbed, local):
    folder = disturbed.workflow.folder
    assert [name for name in FILES + SCRATCH_FILES if (folder / name).read_bytes() != (local / name).read_bytes()] == []
    for name in (RESULT, SCRATCH):
        assert lasting(json.loads((folder / name).read_text())) == lasting(json.loads((local / name).read_text()))


def test_what_cannot_be_made_is_reported_and_the_rest_is_made(disturbed, tmp_path):
    workflow = disturbed.workflow
    (workflow.folder / "broken-teacher-told161").write_text("1")
    more = OVERLAY | {"retries": 0, "set-resources": {"distill": {"mem_mb": 200000}}}  # the node has 128 GB
    broken, refused = "results/runs/scratch/digits_told161/seed1/student.json", f"results/runs/dda/{PAIR}/seed1/student.json"
    fine = f"results/compare/{PAIR}.html"
    with Submission(workflow, profile(tmp_path / "profile", more), broken, fine, refused) as run:
        outcome = run.finish()
    assert outcome.status == 1
    refusal = {"distill": ["FAILED"]}  # Slurm may list what it refused
    assert outcome.states() | refusal == {"scratch": ["FAILED"], "compare": ["COMPLETED"]} | refusal
    assert [(workflow.folder / name).exists() for name in (broken, fine, refused)] == [False, True, False]
    assert "dfkd: told161 is broken in teacher." in outcome.said
    assert "Requested node configuration is not available" in outcome.said
