import base64
import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.cli_bank import bank_app
from dfkd.errors import UserError
from dfkd.inspection import page_figures as figures
from dfkd.inspection.bank_page import write_bank_page
from dfkd.inspection.page_images import STAGES, Part, default_count, draw_images, even_shares
from dfkd.inspection.prune import prune_bank
from dfkd.inspection.scores import read_scores, scores_file, scores_of
from dfkd.models import build_model
from dfkd.models.weights import save_weights

NAMES = list(STAGES)


def write(path, meta, images, labels, scores=None, parents=None):
    with BankWriter(path.with_suffix(".work"), meta, resume=False) as writer:
        writer.append_images(images, labels, scores, parents)
        writer.publish(path)
    return path


def read_page(path):
    """What a page holds: its text, the data of its script, and the cells of its sheet as [cells,H,W] or [cells,H,W,3]."""
    text = path.read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    (sheet,) = re.findall(r"background-image: url\(data:image/png;base64,([^)]+)\)", text)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(sheet))))
    columns, rows = data["sheet"]
    size = data["size"]
    cells = pixels.reshape(rows, size, columns, size, -1).swapaxes(1, 2).reshape(rows * columns, size, size, -1)
    return SimpleNamespace(text=text, data=data, cells=cells, images=data["images"], columns=data["images"]["columns"])


@pytest.fixture(scope="module")
def own(tree, tmp_path_factory):
    """The tree once more, to write into."""
    results = tmp_path_factory.mktemp("page") / "results"
    shutil.copytree(tree.results, results)
    banks = results / "banks" / "bars_wrn101"
    names = {name: banks / f"{name}.lmdb" for name in ("init", "variations", "rejected")}
    return SimpleNamespace(folder=banks, teacher=results / "teachers" / "bars_wrn101" / "weights.safetensors", **names)


@pytest.fixture(scope="module")
def variations(own, reference):
    """The page of the variations, with everything on it."""
    write_bank_page(own.variations, own.folder / "variations.html", None, reference)
    return read_page(own.folder / "variations.html")


def test_every_image_is_there_with_its_pixels_scores_and_parent(own, variations, reference):
    page, row = variations, 0
    assert [bank["file"] for bank in page.data["banks"]] == ["variations.lmdb", "rejected.lmdb", "init.lmdb"]
    counts = [len(BankReader(path)) for path in (own.variations, own.rejected, own.init)]
    assert sum(counts[:2]) == 120
    for number, path in enumerate((own.variations, own.rejected, own.init)):
        bank, scores = BankReader(path).load(), scores_of(path, None, reference)
        for index in range(len(bank)):
            cell = page.cells[page.images["cell"][row]]
            assert np.array_equal(cell, bank.images[index].permute(1, 2, 0).numpy())
            assert (page.images["bank"][row], page.images["index"][row]) == (number, index)
            for name, values in scores.columns.items():
                assert page.columns[name][row] == pytest.approx(values[index], rel=1e-5)
            assert page.images["top"][row] == scores.top_classes[index].tolist()
            assert page.images["top_probability"][row] == pytest.approx(scores.top_probabilities[index], rel=1e-5)
            parent = int(bank.parents[index])
            family = page.images["family"][row]
            assert family == (-1 if path == own.init else sum(counts[:2]) + parent)
            row += 1
    stages = [NAMES[stage] for stage in page.images["stage"]]
    assert stages == ["accepted"] * counts[0] + ["rejected"] * counts[1] + ["parent"] * counts[2]
    assert row == len(stages) == len(page.images["x"])
    assert page.columns["cosine"][-1] is None  # parents have none
    assert "All 120 images are on this page, rejected.lmdb included, and their parents beside them." in page.text


def test_equal_images_share_a_cell(variations):
    cells = variations.images["cell"]
    first = len(cells) - 60
    assert cells[first + 11] == cells[first + 5]
    assert len(set(cells)) == len(np.unique(variations.cells.reshape(len(variations.cells), -1)[: max(cells) + 1], axis=0))
    assert (variations.columns["duplicate_of"][first + 11], variations.columns["constant"][first + 7]) == (5, 1)


def test_figures_are_those_of_the_banks(own, variations, reference):
    kept, dropped = (scores_of(path, None, reference) for path in (own.variations, own.rejected))
    labels = {name: scores.columns["label"] for name, scores in (("accepted", kept), ("rejected", dropped))}
    for name, values in labels.items():
        assert variations.data["counts"][name] == np.bincount(values, minlength=3).tolist()
    parts = [Part(path, BankReader(path), scores_of(path, None, reference)) for path in (own.variations, own.rejected)]
    table = figures.class_table(*parts)
    assert [row["name"] for row in table] == ["all", "top", "middle", "bottom"]
    for label, row in enumerate(table, start=-1):
        mine, others = (values == label if label >= 0 else values >= 0 for values in labels.values())
        of = {name: values[mine] for name, values in kept.columns.items()}
        assert (row["images"], row["accepted"], row["rejected"]) == (mine.sum(), mine.sum(), others.sum())
        assert row["accept_rate"] == pytest.approx(mine.sum() / (mine.sum() + others.sum()))
        assert row["agree"] == pytest.approx((of["label"] == of["prediction"]).mean())
        for name in ("confidence", "label_probability", "entropy", "cosine"):
            assert row[name] == pytest.approx(of[name].mean(dtype=np.float64))
        distance = kept.all_bn_distance if label < 0 else kept.class_bn_distance[label]
        assert row["bn_distance"] == pytest.approx(distance, rel=1e-5)
    assert f"{100 * table[0]['accept_rate']:.1f} %" in variations.text
    for answer, row in enumerate(np.array(variations.data["answers"]).T):
        assert row.tolist() == np.bincount(kept.columns["label"][kept.columns["prediction"] == answer], minlength=3).tolist()


def test_histograms_count_every_image(own, variations, reference):
    found = variations.data["histograms"]
    assert set(found) == {"cosine", "confidence", "label_probability", "entropy", "bn_distance", "brightness", "contrast"}
    everything = [scores_of(path, None, reference).columns for path in (own.variations, own.rejected, own.init)]
    for stage, columns in zip(("accepted", "rejected", "parent"), everything, strict=True):
        for name, histogram in found.items():
            if name not in columns:
                assert stage not in histogram["counts"]
                continue
            edges = np.linspace(histogram["from"], histogram["to"], 41)
            assert histogram["counts"][stage] == np.histogram(columns[name].astype(np.float64), edges)[0].tolist()
            assert sum(histogram["counts"][stage]) == len(columns[name])


def test_blanks_and_twins_are_called_out(own, reference, tmp_path):
    write_bank_page(own.init, tmp_path / "init.html", None, reference)
    text = " ".join((tmp_path / "init.html").read_text().split())
    assert "1 of 60 images have the pixels of an earlier one" in text
    assert "1 have one value at every pixel" in text
    assert "<b>1 · 1</b>" in text
    assert [bank["name"] for bank in read_page(tmp_path / "init.html").data["banks"]] == ["init"]  # whatever lies beside it


def test_features_are_projected_on_their_principal_axes(own, variations, reference):
    features = [scores_of(path, None, reference).features for path in (own.variations, own.rejected, own.init)]
    together = np.concatenate(features).astype(np.float64)
    centred = together - together.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    for name, axis, share, place in zip(("x", "y"), axes, singular**2 / (singular**2).sum(), (0, 1), strict=False):
        found = np.array(variations.images[name])
        expected = centred @ axis
        sign = np.sign(found @ expected)
        assert np.allclose(found, sign * expected, rtol=1e-3, atol=1e-3)
        assert variations.data["explained"][place] == pytest.approx(share, rel=1e-4)
    assert figures.principal_axes([np.ones((5, 4), np.float16)]) is None  # no variance
    assert figures.principal_axes([np.zeros((0, 0), np.float16)]) is None


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [
        ([5, 5, 5], 9, [3, 3, 3]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([4, 4, 4], 5, [2, 2, 1]),
        ([2, 3], 100, [2, 3]),
        ([0, 3], 2, [0, 2]),
        ([], 5, []),
    ],
)
def test_shares_are_as_even_as_can_be(counts, total, shares):
    assert even_shares(counts, total) == shares


def test_a_page_of_some_images_is_drawn_evenly_and_says_so(own, reference, tmp_path):
    write_bank_page(own.variations, tmp_path / "some.html", own.teacher, reference, images=24)
    page = read_page(tmp_path / "some.html")
    made = [row for row, bank in enumerate(page.images["bank"]) if bank < 2]
    cells = [(NAMES[page.images["stage"][row]], page.columns["label"][row]) for row in made]
    assert {cell: cells.count(cell) for cell in cells} == {
        (stage, label): 4 for stage in ("accepted", "rejected") for label in (0, 1, 2)
    }
    assert "<b>24 of 120 images</b> are on this page, drawn evenly over classes and stages (seed 0)" in page.text
    assert "statistics are of all" in page.text
    assert sum(page.data["counts"]["accepted"]) == len(BankReader(own.variations))
    parents = {page.images["index"][row] for row, bank in enumerate(page.images["bank"]) if bank == 2}
    assert parents == {page.columns["parent"][row] for row in made}
    for row in made:
        assert page.images["index"][page.images["family"][row]] == page.columns["parent"][row]


def test_what_is_drawn_follows_from_the_seed_and_keeps_families_together(own, reference):
    parts = [Part(path, BankReader(path), scores_of(path, None, reference)) for path in (own.variations, own.rejected)]
    first, again, other = (draw_images(parts, 40, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))
    assert sum(map(len, first)) == 40
    kept, dropped = (set(part.scores.columns["parent"][rows].tolist()) for part, rows in zip(parts, first, strict=True))
    both = [set(part.scores.columns["parent"].tolist()) for part in parts]
    apart = kept - dropped
    shared = {parent for parent in apart if parent in both[1]}
    assert len(shared) <= len(kept & dropped)  # by chance alone most of them would be apart


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 16, 16), 2000), ((3, 32, 32), 2000), ((3, 224, 224), 222), ((3, 4000, 4000), 1)]
)
def test_large_images_are_fewer(shape, count):
    assert default_count(shape) == count


def test_a_parent_that_stands_for_itself_is_not_called_accepted(tree, tmp_path, reference):
    meta = BankMeta(kind="variations", dataset=tree.info, teacher_sha256=tree.card.sha256, stage="augment", stage_version=1)
    scores = {"cosine": torch.tensor([0.9, 1.0]), "variation": torch.tensor([0.0, -1.0])}
    bank = write(tmp_path / "variations.lmdb", meta, tree.images[:2], tree.labels[:2], scores, torch.tensor([0, 1]))
    write_bank_page(bank, tmp_path / "a.html", tree.teacher, reference)
    page = read_page(tmp_path / "a.html")
    assert [NAMES[stage] for stage in page.images["stage"]] == ["accepted", "kept parent"]
    assert page.images["family"] == [-1, -1]  # their bank is not there
    assert "1 accepted, 1 kept parents" in page.text


def test_nothing_is_loaded_and_equal_banks_give_equal_bytes(own, tree, reference, tmp_path):
    shutil.copytree(tree.results, tmp_path / "results")
    other = tmp_path / "results" / "banks" / "bars_wrn101"
    for folder in (own.folder, other):
        write_bank_page(folder / "variations.lmdb", folder / "variations.html", None, reference)
    text = (other / "variations.html").read_text()
    assert (own.folder / "variations.html").read_text() == text
    assert str(tmp_path) not in text
    head = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)\s*=|@import|https?://", head) == []
    assert re.findall(r"url\((?!data:)", head) == []
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):  # plotly's own is packed
        assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(", script)


def test_commands_and_provenance(variations, own):
    text = variations.text.replace("&#34;", '"').replace("&#39;", "'")
    assert "snakemake --cores all results/banks/bars_wrn101/variations.lmdb" in text
    assert "dfkd bank page results/banks/bars_wrn101/variations.lmdb -o results/banks/bars_wrn101/variations.html" in text
    assert (
        "dfkd augment --teacher results/teachers/bars_wrn101/weights.safetensors --bank results/banks/bars_wrn101/init.lmdb"
        in text
    )
    meta = BankReader(own.variations).meta
    assert meta.teacher_sha256 in text
    assert meta.lineage[-1]["sha256"] in text
    assert "revision" in text
    assert "accept_rate" in text


def test_an_empty_bank_of_a_run_has_a_page(tree, reference, tmp_path):
    lineage = [{"stage": "teacher", "architecture": "wrn101", "sha256": tree.card.sha256}]
    common = {"dataset": tree.info, "teacher_sha256": tree.card.sha256, "stage_version": 2, "lineage": lineage}
    meta = BankMeta(kind="run", stage="distill", extra={"method": "kd", "student": "wrn101"}, **common)
    with BankWriter(tmp_path / "work", meta, resume=False) as writer:
        writer.publish(tmp_path / "bank.lmdb")
    done = write_bank_page(tmp_path / "bank.lmdb", tmp_path / "bank.html", tree.teacher, reference, keep_scores=True)
    assert (done["images"], done["shown"]) == (0, 0)
    text = (tmp_path / "bank.html").read_text()
    assert "This bank is empty" in text
    assert 'id="grid"' not in text
    assert 'id="plotly"' not in text
    assert "Image bank bank.lmdb" in text
    assert len(read_scores(scores_file(tmp_path / "bank.lmdb"))) == 0


def test_a_pruned_bank_beside_changes_no_page_and_has_its_own(own, variations, reference, tmp_path):
    shutil.copytree(own.folder.parents[1], tmp_path / "results")
    folder = tmp_path / "results" / "banks" / "bars_wrn101"
    prune_bank(folder / "variations.lmdb", "cosine < 0.6", folder / "a.lmdb", None, reference)
    write_bank_page(folder / "variations.lmdb", folder / "variations.html", None, reference)
    assert (folder / "variations.html").read_text() == variations.text
    write_bank_page(folder / "a.lmdb", folder / "a.html", None, reference)
    page = read_page(folder / "a.html")
    assert [bank["file"] for bank in page.data["banks"]] == ["a.lmdb", "init.lmdb"]
    assert min(value for value in page.columns["cosine"] if value is not None) >= 0.6
    assert "where cosine &lt; 0.6" in page.text
    assert "dfkd augment" not in page.text


def test_a_filter_that_dropped_nothing(own, reference, tmp_path):
    for path in (own.init, own.variations):
        shutil.copy(path, tmp_path)
    with BankWriter(tmp_path / "work", BankReader(own.rejected).meta.model_copy(update={"status": "writing"})) as writer:
        writer.truncate(0)
        writer.publish(tmp_path / "rejected.lmdb")
    write_bank_page(tmp_path / "variations.lmdb", tmp_path / "a.html", own.teacher, reference, keep_scores=True)
    page = read_page(tmp_path / "a.html")
    assert [bank["images"] for bank in page.data["banks"]] == [len(BankReader(own.variations)), 0, 60]
    assert "rejected" not in page.data["counts"]
    assert "<b>100.0 %</b>" in page.text
    assert len(read_scores(tmp_path / "rejected.scores.h5")) == 0


def test_colours_and_odd_names_of_classes(tree, reference, tmp_path):
    classes = ["<script>alert(1)</script>", 'a & "b"', "it's {{ 1 + 1 }}"]
    info = tree.info.model_copy(update={"classes": classes, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3})
    torch.manual_seed(0)
    card = tree.card.model_copy(update={"dataset": info, "architecture": "wrn101"})
    card = save_weights(tmp_path / "weights.safetensors", build_model("wrn101", 3, 3, 8), card)
    images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    meta = BankMeta(kind="init", dataset=info, teacher_sha256=card.sha256, stage="import", stage_version=1)
    bank = write(tmp_path / "rgb.lmdb", meta, images, torch.arange(7) % 3)
    write_bank_page(bank, tmp_path / "rgb.html", tmp_path / "weights.safetensors", reference)
    page = read_page(tmp_path / "rgb.html")
    assert page.data["classes"] == classes
    assert np.array_equal(page.cells[page.images["cell"]], images.permute(0, 2, 3, 1).numpy())
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text


def test_the_command_writes_page_sheet_and_scores_at_once(own, tmp_path):
    grid = tmp_path / "variations.png"
    words = ["page", str(own.variations), "-o", str(tmp_path / "page.html"), "--teacher", str(own.teacher)]
    result = CliRunner().invoke(bank_app, [*words, "--grid", str(grid), "--scores", "--device", "cpu", "--images", "30"])
    assert result.exit_code == 0, result.output
    assert re.search(r"page\.html: \d+ images, \d\.\d MB; .*variations\.lmdb holds \d+", result.output.replace("\n", ""))
    result = CliRunner().invoke(bank_app, ["grid", str(own.variations), "--by", "parent", "-o", str(tmp_path / "other.png")])
    assert result.exit_code == 0, result.output
    assert grid.read_bytes() == (tmp_path / "other.png").read_bytes()
    for path in (own.variations, own.rejected):
        assert len(read_scores(scores_file(path))) == len(BankReader(path))
        scores_file(path).unlink()
    assert not scores_file(own.init).exists()  # another command's


def test_mistakes_are_told_before_anything_is_written(own, tree, reference, tmp_path):
    with pytest.raises(UserError, match=r"a page is an HTML file"):
        write_bank_page(own.init, tmp_path / "page.png", None, reference)
    with pytest.raises(UserError, match=r"--images 0: a page shows at least one image"):
        write_bank_page(own.init, tmp_path / "page.html", None, reference, images=0)
    with pytest.raises(UserError, match="no such bank"):
        write_bank_page(tmp_path / "none.lmdb", tmp_path / "page.html", None, reference)
    meta = BankReader(tree.init).meta
    growing = BankMeta(**meta.model_dump() | {"status": "writing", "images": 0, "blocks": 0})
    with BankWriter(tmp_path / "growing.lmdb", growing) as writer:
        writer.append_images(tree.images[:10], tree.labels[:10])
        with pytest.raises(UserError, match="still being written"):
            write_bank_page(writer.path, tmp_path / "page.html", tree.teacher, reference, keep_scores=True)
        assert [path for path in tmp_path.iterdir() if path.suffix in (".html", ".png", ".h5")] == []
        write_bank_page(writer.path, tmp_path / "page.html", tree.teacher, reference)
    assert "incomplete: still being written" in (tmp_path / "page.html").read_text()
    assert len(read_page(tmp_path / "page.html").images["index"]) == 10
