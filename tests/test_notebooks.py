"""The notebook: it runs on the results of the stages, and what is committed of it is presentable."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dfkd.distillation.distill import distill
from dfkd.evaluation.evaluate import evaluate
from dfkd.methods import DDASettings
from dfkd.settings import EvaluateSettings

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebooks" / "inspect.ipynb"
SMALL = DDASettings(
    precision="reference", epochs=1, kd_steps=4, batch_size=24, synthesis_batch_size=24, g_steps=4, latent_size=16, width=8
)  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory, tiny_data, tiny_teacher, tiny_bank, reference):
    """results/ and data/ as the workflow lays them out, from the stages themselves."""
    root = tmp_path_factory.mktemp("tree")
    results, run = root / "results", root / "results" / "runs" / "dda" / "bars_wrn101_wrn101" / "seed0"
    for source, target in (
        (tiny_teacher.parent, results / "teachers" / "bars_wrn101"),
        (tiny_bank.parent, results / "banks" / "bars_wrn101"),
        (tiny_data.test.parent, root / "data"),
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    teacher, student = results / "teachers" / "bars_wrn101" / "weights.safetensors", run / "student.safetensors"
    distill(teacher, [tiny_bank], "wrn101", tiny_data.test, SMALL, 0, student, root / "checkpoint", reference)
    evaluate([student], tiny_data.test, EvaluateSettings(), reference, teacher=teacher, output=run, pictures=False)
    return results


def test_the_notebook_runs_on_the_results_of_the_stages(tree, monkeypatch):
    for name, value in {"RESULTS": tree, "TARGET": "bars_wrn101_wrn101", "METHOD": "dda"}.items():
        monkeypatch.setenv(f"DFKD_{name}", str(value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    cells = {cell["id"]: cell for cell in notebook.cells if cell.cell_type == "code"}
    printed = "".join(output.get("text", "") for output in cells["metrics"].outputs)
    assert re.search(r"Teacher wrn101: Acc@1 \d+\.\d\d %", printed)
    assert re.search(r"Agree@1 \d+\.\d\d %", printed)
    assert "init.lmdb: 96 images" in "".join(output.get("text", "") for output in cells["banks"].outputs)
    for name in ("disagree", "reliable", "features", "boundary", "sheet", "classes"):
        assert any("image/png" in output.get("data", {}) for output in cells[name].outputs), name


def test_what_is_committed_is_whole_small_and_says_nothing_of_its_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1_000_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs or cell["id"] == "paths" for cell in code)
    assert not any("execution" in cell.metadata for cell in code)
    texts = [cell.source for cell in notebook.cells]
    texts += [output.get("text", "") for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for cell in code for output in cell.outputs)
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr|mnt|Users)/", "\n".join(texts))
