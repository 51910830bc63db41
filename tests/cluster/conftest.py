import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "workflow"))

import digits  # noqa: E402
import slurm  # noqa: E402


@pytest.fixture(scope="session")
def artefacts():
    """What a run leaves behind to be looked at."""
    folder = ROOT / "test-artefacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cluster(artefacts):
    """A SLURM of this session's own. Not to have one is a failure: these tests are asked for by name."""
    if reason := slurm.missing():
        pytest.exit(reason, returncode=2)
    # pytest's own folders are closed to other users, and munged is one
    with tempfile.TemporaryDirectory(prefix="dfkd-slurm-") as name:
        try:
            with slurm.running(Path(name)):
                yield
        finally:
            for log in Path(name).glob("*.out"):
                shutil.copy(log, artefacts / f"{log.stem}.log")


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A folder in which the targets were made by this machine, undisturbed: once, for all processes of the tests."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "local"
    shared.mkdir(exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = shared / "work"
        if not folder.exists():
            workflow = digits.workflow_in(folder)
            done = workflow("--cores", "2", *digits.SET_THREADS, "--", digits.RESULT, digits.SCRATCH)
            assert done.returncode == 0, done.stdout
    assert (folder / digits.SCRATCH).exists(), "the local run failed in another process of the tests"
    return folder
