import pytest
from workflow_tools import STUB, Workflow


@pytest.fixture
def workflow(tmp_path):
    """A working directory without a config of its own: the checkout's is used. `dfkd` is the stub."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Workflow(folder, tmp_path / "bin", STUB)
