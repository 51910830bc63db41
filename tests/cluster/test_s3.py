"""Artefacts in S3: the plan for Kubernetes, and the digits workflow made part by part, each in an empty folder."""

import json
import re
from pathlib import Path

import pytest
from digits import BANKS, FILES, PAIR, RESULT, RUN, SET_THREADS, STUDENT, TEACHER, lasting, workflow_in
from s3_server import s3
from workflow_tools import ROOT, jobs_in

pytestmark = pytest.mark.timeout(2400)
JOBS = 16

# As a pod has it: what was made for one part is not there for the next, but in the bucket.
PARTS = [
    ["data/digits.test.h5"],
    [f"results/teachers/digits_{TEACHER}/weights.safetensors"],
    [f"{BANKS}/shards/1-of-1.lmdb"],
    [f"{BANKS}/init.lmdb"],
    [f"{BANKS}/init.png", f"{BANKS}/variations.lmdb"],
    [f"{BANKS}/variations.png", f"{RUN}/student.safetensors"],
    [f"{RUN}/metrics.json", f"{RUN}/bank.html"],
    [f"{RUN}/curves.png"],
    [RESULT, f"results/compare/{PAIR}.html"],
]


@pytest.fixture
def bucket(monkeypatch):
    """A server with an empty bucket, and the keys to it."""
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_SECRET_KEY", "secret")
    with s3() as server:
        yield server


def test_the_plan_of_the_kubernetes_profile(bucket, tmp_path):
    workflow = workflow_in(tmp_path / "work")
    profile = ["--workflow-profile", str(ROOT / "workflow" / "profiles" / "kubernetes")]
    profile += ["--default-storage-prefix", "s3://bucket/dfkd", "--storage-s3-endpoint-url", bucket.url]
    done = workflow(*profile, "--dry-run", "--", RESULT)
    assert done.returncode == 0, done.stdout
    assert sum(jobs_in(done.stdout).values()) == JOBS
    assert f"s3://bucket/dfkd/{RESULT} (in storage)" in done.stdout
    assert sorted(re.findall(r"Group job (\w+) ", done.stdout)) == ["evaluation", "merge"]
    (command,) = re.findall(r"Shell command: DFKD_GPUS=1 dfkd distill (.*)", done.stdout)
    assert "--checkpoints results/checkpoints/distill/" in command  # of the claim that is mounted there
    assert "-o .snakemake/storage/s3/bucket/dfkd/results/runs/" in command  # of the pod, and then of the bucket


def test_the_bucket_holds_what_a_local_run_makes(bucket, local, tmp_path):
    storage = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/dfkd"]
    storage += ["--storage-s3-endpoint-url", bucket.url, "--shared-fs-usage", "none"]
    for number, targets in enumerate(PARTS):
        workflow = workflow_in(tmp_path / str(number) / "work")
        done = workflow("--cores", "2", *storage, *SET_THREADS, "--", *targets)
        assert done.returncode == 0, done.stdout
        assert not (workflow.folder / "results" / "teachers").exists()
    made = {key.removeprefix("dfkd/"): body for key, (body, _) in bucket.objects.items()}
    assert [name for name in FILES if made[name] != (local / name).read_bytes()] == []
    assert lasting(json.loads(made[RESULT])) == lasting(json.loads((local / RESULT).read_text()))
    assert STUDENT in made[f"results/compare/{PAIR}.html"].decode()
    assert not any(Path(name).suffix == ".pt" for name in made)  # checkpoints are no artefacts
