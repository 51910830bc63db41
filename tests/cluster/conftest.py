import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "workflow"))

import slurm


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
