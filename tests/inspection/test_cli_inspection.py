"""The commands that look into banks, on a results folder in small."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.cli_bank import bank_app
from dfkd.errors import UserError


def run(*words, status=0):
    result = CliRunner().invoke(bank_app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status
    return result.stdout


@pytest.fixture(scope="module")
def results(tree, tmp_path_factory):
    """A copy of the tree with a run's bank that is being written."""
    results = tmp_path_factory.mktemp("cli") / "results"
    shutil.copytree(tree.results, results)
    lineage = [{"stage": "teacher", "architecture": "wrn101"}, {"stage": "init-bank", "bank": "init", "images": 60}]
    meta = BankReader(tree.init).meta.model_copy(
        update={"kind": "run", "stage": "distill", "lineage": lineage, "extra": {"method": "dda", "student": "lenet5half"}}
    )
    with BankWriter(results / "checkpoints" / "distill" / "dda" / "bars_seed0" / "bank.lmdb", meta) as writer:
        writer.append_images(tree.images[:12], tree.labels[:12])
    return results


def test_ls_names_teachers_and_stages(results):
    rows = {row["path"].rsplit("/", 1)[1]: row for row in json.loads(run("ls", results, "--json"))}
    assert {name: row["made"] for name, row in rows.items()} == {
        "bank.lmdb": "run dda (lenet5half)",
        "init.lmdb": "init",
        "variations.lmdb": "variations (bank-diffusion)",
        "rejected.lmdb": "rejected (bank-diffusion)",
    }
    assert {row["teacher"] for row in rows.values()} == {"wrn101"}
    assert (rows["bank.lmdb"]["status"], rows["bank.lmdb"]["images"], rows["bank.lmdb"]["classes"]) == ("writing", 12, 3)
    (results / "teachers" / "bars_wrn101" / "weights.json").rename(results / "card")
    try:
        text = run("ls", results)
    finally:
        (results / "card").rename(results / "teachers" / "bars_wrn101" / "weights.json")
    assert rows["init.lmdb"]["teacher_sha256"][:12] in text
    assert "run dda (lenet5half)" in text


def test_info_shows_the_lineage(results):
    text = run("info", next(results.rglob("bank.lmdb")))
    assert "teacher: wrn101" in text
    assert "distill: run dda (lenet5half), 12 images, still being written" in text


def test_show(results, tmp_path):
    bank = next(results.rglob("variations.lmdb"))
    said = json.loads(run("show", bank, "4", "--json", "-o", tmp_path / "x.png"))
    assert said["teacher"]["architecture"] == "wrn101"
    assert Image.open(tmp_path / "x.png").height >= 256
    assert "label" in run("show", bank, "4")
    with pytest.raises(UserError, match="no image 999; it holds images 0 to"):
        run("show", bank, "999")


def test_grid(results, tmp_path):
    bank, init = next(results.rglob("variations.lmdb")), next(results.rglob("init.lmdb"))
    sizes = {}
    for name, words in {
        "class": [init],
        "worst": [init, "--order", "worst", "--score", "entropy"],
        "some": [init, "--where", "constant == 1"],
        "stage": [bank, "--by", "stage"],
        "stages": [next(results.rglob("bank.lmdb")), init, "--by", "stage"],
        "parent": [bank, "--by", "parent"],
        "given": [bank, "--parents", init],
        "verdict": [bank, "--by", "verdict"],
    }.items():
        run("grid", *words, "-o", tmp_path / f"{name}.png")
        sizes[name] = Image.open(tmp_path / f"{name}.png").size
    assert sizes["some"][0] < sizes["class"][0] < sizes["stage"][0]
    assert (tmp_path / "parent.png").read_bytes() == (tmp_path / "given.png").read_bytes()
    assert (tmp_path / "class.png").read_bytes() != (tmp_path / "worst.png").read_bytes()
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "verdict.png")).reshape(-1, 3)}
    assert {(0x2E, 0x7D, 0x32), (0xC6, 0x28, 0x28)} <= colours


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--by", "clas"), "--by clas: the nearest known: class"),
        (("--order", "beast"), "--order beast: the nearest known: best"),
        (("--order", "best"), "name the score that it goes by with --score"),
        (("--order", "best", "--score", "entrop"), "no column 'entrop'; the nearest known: entropy"),
        (("--where", "label == top and label == bottom"), "no image for which 'label == top and label == bottom' holds"),
        (("--by", "parent"), "the bank of its parents is not beside it; name it with --parents"),
        (("--by", "verdict"), "the bank of its parents is not beside it"),
        (("other.lmdb",), r"other\.lmdb: a sheet by class shows one bank; name one, or compare them with --by stage"),
    ],
)
def test_grid_refusals(results, tmp_path, words, sentence):
    with pytest.raises(UserError, match=sentence):
        run("grid", next(results.rglob("init.lmdb")), *words, "-o", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_stats_against(results, tiny_data):
    init = next(results.rglob("init.lmdb"))
    figures = json.loads(run("stats", init, "--against", tiny_data.test, "--json"))
    assert figures["against"]["images"] == [60, 60]
    text = run("stats", init, "--against", tiny_data.test)
    assert f"FID {figures['against']['fid']:.4g}" in text


def test_diff_has_the_status_of_diff(results):
    init, bank = next(results.rglob("init.lmdb")), next(results.rglob("bank.lmdb"))
    assert "hold the same" in run("diff", init, init)
    found = json.loads(run("diff", init, bank, "--json", "--features", status=1))
    assert (found["images"]["both"], found["features"]["images"]) == (12, [60, 12])
    assert "FID" in run("diff", init, bank, "--features", status=1)
    with pytest.raises(UserError, match="no such bank"):
        run("diff", init, "absent.lmdb")


def test_prune_then_distill(results, tree, tiny_data, tmp_path, reference):
    init = next(results.rglob("init.lmdb"))
    text = run("prune", init, "--where", "label != prediction or constant == 1", "--dry-run")
    assert "would leave out" in text
    assert not list(tmp_path.glob("*.lmdb"))
    text = run("prune", init, "--where", "label != prediction or constant == 1", "-o", tmp_path / "kept.lmdb")
    kept = BankReader(tmp_path / "kept.lmdb").load()
    assert 0 < len(kept) < 60
    assert f"of 60 images, {len(kept)} stay" in text
    for words in (("--dry-run", "-o", "x.lmdb"), ()):
        with pytest.raises(UserError, match="give either --output, the bank to write, or --dry-run"):
            run("prune", init, "--where", "label == 0", *words)

    from dfkd.distillation.distill import distill
    from dfkd.methods import METHODS

    settings = METHODS["kd"].settings(transfer_set="bank:init", precision="reference", epochs=1, kd_steps=2, batch_size=8)
    output = tmp_path / "run" / "student.safetensors"
    distill(
        tree.teacher, [tmp_path / "kept.lmdb"], "wrn101", tiny_data.test, settings, 0, output, tmp_path / "c", reference, "kd"
    )
    assert output.exists()


def test_export_and_import(results, tmp_path):
    bank = next(results.rglob("variations.lmdb"))
    for kind in ("folder", "webdataset", "hf", "hdf5"):
        run("export", bank, "-o", tmp_path / kind, "--format", kind)
        assert "kind variations" in run("import", tmp_path / kind, "-o", tmp_path / "back.lmdb")
        assert (tmp_path / "back.lmdb").read_bytes() == bank.read_bytes()
    (tmp_path / "folder" / "bank.json").unlink()
    run("import", tmp_path / "folder", "-o", tmp_path / "new.lmdb", "--teacher", next(results.rglob("weights.safetensors")))
    assert BankReader(tmp_path / "new.lmdb").meta.kind == "init"
    assert torch.equal(BankReader(tmp_path / "new.lmdb").load().images, BankReader(bank).load().images)
