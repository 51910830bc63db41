"""The digits workflow on a real SLURM, through the shipped profile: jobs that end early, and what comes of them."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import slurm
import yaml
from workflow_tools import ENTRY, ROOT, Workflow, jobs_in

PAIR = "digits_told162_told161"
RESULT = f"results/{PAIR}.json"
SCRATCH = "results/scratch/digits_told161.json"
RUN = f"results/runs/dda/{PAIR}/seed0"
BANKS = "results/banks/digits_told162"
REPORT = ROOT / "test-artefacts" / "slurm_jobs.md"

CONFIG = {
    "plugins": ["told.py"],
    "teacher": {
        "defaults": {"precision": "reference", "epochs": 1, "schedule": "cosine"},
        "overrides": {"digits": {"epochs": 8}},
    },
    "init_bank": {"defaults": {"precision": "reference", "batches": 6, "batch_size": 20, "steps": 3}},
    "augment": {
        "defaults": {
            "precision": "reference",
            "backend": "bank-diffusion",
            "threshold": 0.0,
            "bank_diffusion": {"channels": [16, 16], "train_steps": 2, "batch_size": 16, "sampling_steps": 4},
        }
    },
}
METHOD = {
    "precision": "reference",
    "epochs": 4,
    "kd_steps": 2,
    "batch_size": 16,
    "synthesis_batch_size": 16,
    "g_steps": 2,
}
GROUPS = ("merge", "evaluation")
# One core a stage here and in the local run: sums in another order round otherwise.
THREADS = dict.fromkeys(("teacher", "scratch", "init_shard", "augment", "distill", "evaluate", "evaluate_scratch"), 1)
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


def laid_over(below, above):
    """The two profiles, key by key."""
    both = {key: laid_over(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return {**below, **above, **both}


def working_folder(folder):
    (folder / "config" / "methods").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "datasets.yaml", folder / "config")
    shutil.copy(Path(__file__).with_name("told.py"), folder)
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "config" / "methods" / "dda.yaml").write_text(yaml.safe_dump({"defaults": METHOD}))
    return folder


def profile(folder, overlay):
    """The shipped profile under an overlay, as a profile of its own."""
    shipped = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(laid_over(shipped, overlay)))
    return folder


class Submission:
    """Snakemake on the cluster, in the background; SLURM's jobs and the stages' logs, by rule."""

    def __init__(self, workflow, profile, *targets):
        self.folder, self.said = workflow.folder, workflow.folder / "snakemake.txt"
        self.logs = {}  # rule → the logs of its attempts: each attempt empties the file
        self._before = {job["JobId"] for job in slurm.jobs()}
        words = [sys.executable, "-m", "snakemake", *workflow.place(), "--workflow-profile", str(profile), "--", *targets]
        with self.said.open("w") as log:
            self.process = subprocess.Popen(words, cwd=workflow.folder, env=workflow.environment, stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()  # nothing is left to kill after finish(); its jobs end with the cluster
        self.process.wait()

    def jobs(self, rule=None):
        """The jobs that were submitted, for this rule or group or for all, in order."""
        own = [job for job in slurm.jobs() if job["JobId"] not in self._before]
        return [job for job in own if rule in (None, rule_of(job))]

    def running(self):
        """The rules of the jobs that run now."""
        return [rule_of(job) for job in self.jobs() if job["JobState"] == "RUNNING"]

    def wait(self, condition, what, seconds=400):
        """Wait until the condition holds, and note meanwhile what the stages log."""

        def noted():
            self._note()
            assert self.process.poll() is None, f"Snakemake ended before {what}:\n{self.said.read_text()}"
            return condition()

        return slurm.wait(noted, seconds, f"not yet: {what}")

    def reach(self, rule, *states):
        """Wait until the rule's jobs are in these states."""
        self.wait(lambda: [job["JobState"] for job in self.jobs(rule)] == [*states], f"{rule} is {', '.join(states)}")

    def finish(self):
        """Snakemake's exit status, and what it said."""
        slurm.wait(lambda: self._note() or self.process.poll() is not None, 400, "Snakemake does not end")
        return self.process.returncode, self.said.read_text()

    def _note(self):
        for file in self.folder.glob("logs/*/**/*.log"):
            text, seen = file.read_text(), self.logs.setdefault(file.relative_to(self.folder / "logs").parts[0], [""])
            seen[-1:] = [text] if text.startswith(seen[-1]) else [seen[-1], text]


def rule_of(job):
    """The rule in the comment that the plugin gives a job, `rule_NAME_wildcards_…`; the group of `rule_GROUP_RULE_RULE…`."""
    name = re.match(r"rule_(.+?)(?:_wildcards_.*)?$", job["Comment"])[1]
    return next((group for group in GROUPS if name.startswith(f"{group}_")), name)


def first_step(log):
    """The first step that a log reports as done."""
    return int(re.search(r" (\d+)/\d+  [\d.]+ steps/s", log)[1])


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same targets on this machine, undisturbed."""
    folder = working_folder(tmp_path_factory.mktemp("local") / "work")
    workflow = Workflow(folder, folder.parent / "bin", ENTRY)
    threads = [f"{rule}={count}" for rule, count in THREADS.items()]
    done = workflow("--cores", "2", "--set-threads", *threads, "--", RESULT, SCRATCH)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def disturbed(cluster, tmp_path_factory):
    """The targets on the cluster, where jobs outlive their time, are killed, take too much memory and lose their node."""
    folder = working_folder(tmp_path_factory.mktemp("cluster") / "work")
    workflow = Workflow(folder, folder.parent / "bin", ENTRY)
    teacher, scratch, student = (folder / f"slow-{of}" for of in ("teacher-told162", "teacher-told161", "distill-told161"))
    for file, seconds in ((teacher, "3"), (scratch, "4"), (student, "0.3")):
        file.write_text(seconds)
    (folder / "large-augment-told162").write_text("1200")
    with Submission(workflow, profile(folder / "profile", OVERLAY), RESULT, SCRATCH) as run:
        run.reach("teacher", "FAILED")  # SIGTERM before its time is up
        teacher.unlink()
        run.reach("scratch", "TIMEOUT")
        run.wait(lambda: len(run.logs["scratch"]) == 2 and "steps/s" in run.logs["scratch"][1], "scratch goes on")
        slurm.ask("scancel", run.jobs("scratch")[1]["JobId"])
        run.reach("scratch", "TIMEOUT", "CANCELLED")
        scratch.unlink()
        run.reach("augment", "FAILED", "COMPLETED")
        run.wait(lambda: [*folder.glob("results/checkpoints/distill/*/*/state.pt")], "an epoch of the student is done")
        student.write_text("3")
        run.wait(lambda: run.running() == ["distill"], "the student is all that runs")
        slurm.set_node("DRAIN")
        drained = slurm.node(), run.running()
        slurm.set_node("DOWN")
        run.reach("distill", "NODE_FAIL", "PENDING")
        student.unlink()
        slurm.set_node("RESUME")
        status, said = run.finish()
        yield Outcome(folder, workflow, status, said, run.logs, run.jobs(), drained)


class Outcome:
    """What a run on the cluster left behind."""

    def __init__(self, folder, workflow, status, said, logs, jobs, drained=None):
        self.folder, self.workflow, self.status, self.said, self.logs, self.drained = (
            folder,
            workflow,
            status,
            said,
            logs,
            drained,
        )
        self.rules = {rule: [job for job in jobs if rule_of(job) == rule] for rule in map(rule_of, jobs)}


def test_every_target_is_made_and_nothing_is_left_to_do(disturbed):
    assert disturbed.status == 0, disturbed.said
    assert {rule: [job["JobState"] for job in jobs] for rule, jobs in disturbed.rules.items()} == {
        "prepare": ["COMPLETED"],
        "teacher": ["FAILED", "COMPLETED"],
        "scratch": ["TIMEOUT", "CANCELLED", "COMPLETED"],
        "init_shard": ["COMPLETED"],
        "merge": ["COMPLETED"],
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
    (log,) = disturbed.folder.glob(f"logs/slurm/rule_augment/**/{disturbed.rules['augment'][0]['JobId']}.log")
    assert "memory limit" in log.read_text()


def test_a_drained_node_finishes_its_jobs_and_takes_no_more(disturbed):
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
        for log in attempts[1:]:
            assert "resuming from results/checkpoints/" in log
        steps = [first_step(log) for log in attempts]
        assert steps == sorted(set(steps)), f"{rule}: {steps}"
    assert not [path for path in (disturbed.folder / "results" / "checkpoints").rglob("*") if path.is_file()]


def test_each_job_has_a_gpu_of_its_own(disturbed):
    seen = {rule: re.findall(r"sees GPUs (.*)", "".join(logs)) for rule, logs in disturbed.logs.items()}
    assert {seen["teacher"][0], seen["scratch"][0]} == {"0", "1"}  # these ran at the same time
    gpu_rules = [rule for rule, jobs in disturbed.rules.items() if "gpu:1" in jobs[0].get("TresPerJob", "")]
    assert sorted(gpu_rules) == ["augment", "distill", "evaluation", "init_shard", "scratch", "teacher"]


def test_the_results_are_those_of_the_local_run(disturbed, local):
    names = [
        *("data/digits.h5", "data/digits.test.h5", "results/teachers/digits_told162/weights.safetensors"),
        *("results/runs/scratch/digits_told161/seed0/student.safetensors", f"{BANKS}/shards/1-of-1.lmdb"),
        *(f"{BANKS}/{name}" for name in ("init.lmdb", "init.png", "variations.lmdb", "rejected.lmdb", "variations.png")),
        *(
            f"{RUN}/{name}"
            for name in ("student.safetensors", "best.safetensors", "bank.lmdb", "history.csv", "predictions.h5")
        ),
        *(f"{RUN}/{name}" for name in ("metrics.json", "curves.png", "confusion.png", "bank.png")),
    ]
    other = [name for name in names if (disturbed.folder / name).read_bytes() != (local / name).read_bytes()]
    assert other == []
    for name in (RESULT, SCRATCH):
        one, two = (json.loads((folder / name).read_text()) for folder in (disturbed.folder, local))
        artefacts = [result["provenance"].pop("artefacts") for result in (one, two)]
        hashes = [result["provenance"].pop("config_hash") for result in (one, two)]
        steps = [{stage: (cost["optimiser_steps"], cost["images"]) for stage, cost in r["cost"].items()} for r in (one, two)]
        for result in (one, two):
            del result["cost"], result["provenance"]
        assert (one, artefacts[0], hashes[0], steps[0]) == (two, artefacts[1], hashes[1], steps[1])
