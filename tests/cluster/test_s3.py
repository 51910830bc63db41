"""The digits workflow with every artefact in S3: each part is made in an empty folder, from the inputs of its rules alone."""

import json
from pathlib import Path

import pytest
from digits import BANKS, FILES, PAIR, RESULT, RUN, SET_THREADS, STUDENT, TEACHER, lasting, workflow_in
from s3_server import s3

pytestmark = pytest.mark.timeout(2400)

# As a pod has it: what was made for one part is not there for the next, but in the bucket.
PARTS = [
    ["data/digits.test.h5"],
    [f"results/teachers/digits_{TEACHER}/weights.safetensors"],
    [f"{BANKS}/shards/1-of-1.lmdb"],
    [f"{BANKS}/init.png"],
    [f"{BANKS}/variations.lmdb"],
    [f"{BANKS}/variations.png", f"{RUN}/student.safetensors"],
    [f"{RUN}/metrics.json"],
    [f"{RUN}/curves.png"],
    [RESULT, f"results/compare/{PAIR}.html"],
]


def test_the_bucket_holds_what_a_local_run_makes(local, tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_SECRET_KEY", "secret")
    with s3() as server:
        storage = ["--default-storage-provider", "s3", "--default-storage-prefix", "s3://bucket/dfkd"]
        storage += ["--storage-s3-endpoint-url", server.url, "--shared-fs-usage", "none"]
        for number, targets in enumerate(PARTS):
            workflow = workflow_in(tmp_path / str(number) / "work")
            done = workflow("--cores", "2", *storage, *SET_THREADS, "--", *targets)
            assert done.returncode == 0, done.stdout
            assert not (workflow.folder / "results" / "teachers").exists()
        made = {key.removeprefix("dfkd/"): body for key, (body, _) in server.objects.items()}
    assert [name for name in FILES if made[name] != (local / name).read_bytes()] == []
    assert lasting(json.loads(made[RESULT])) == lasting(json.loads((local / RESULT).read_text()))
    assert STUDENT in made[f"results/compare/{PAIR}.html"].decode()
    assert not any(Path(name).suffix == ".pt" for name in made)  # checkpoints are no artefacts
