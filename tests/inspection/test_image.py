import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from dfkd.bank.reader import BankReader
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.image import look_at, render, save_picture
from dfkd.inspection.scores import scores_file, scores_of, write_scores
from dfkd.models.weights import load_model


def drawn(shown, colours, width=100):
    console = Console(file=io.StringIO(), force_terminal=colours, color_system="truecolor" if colours else None, width=width)
    console.print(render(shown, console))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def shown(tree, reference):
    return look_at(tree.variations, 20, None, reference)


def test_what_is_said_of_an_image(tree, shown, reference):
    stored = BankReader(tree.variations).load()
    parent = int(stored.parents[20])
    assert torch.equal(shown.image, stored.images[20])
    assert torch.equal(shown.parent, tree.images[parent])
    said = shown.said
    assert (said["index"], said["label"], said["class"]) == (20, int(stored.labels[20]), tree.info.classes[stored.labels[20]])
    assert (said["parent"], said["parent_bank"]) == (parent, "init.lmdb")
    assert said["scores"] == {name: values[20].item() for name, values in stored.scores.items()}
    assert said["measured"] is None
    model, _ = load_model(tree.teacher, reference)
    for key, image in (("image", shown.image), ("parent", shown.parent)):
        p = model(normalise(to_unit(image[None]), tree.info)).softmax(1)[0]
        top = said["teacher"][key]
        assert [answer["label"] for answer in top] == p.argsort(descending=True).tolist()
        assert np.allclose([answer["probability"] for answer in top], p.sort(descending=True).values, atol=1e-6)
        assert [answer["class"] for answer in top] == [tree.info.classes[answer["label"]] for answer in top]
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_colours_on_a_terminal_shades_elsewhere(shown):
    text = drawn(shown, colours=True)
    assert text.count("▀") >= 2 * 12 * 24
    value = int(shown.image[0, 0, 0])
    assert f"38;2;{value};{value};{value}" in text
    plain = drawn(shown, colours=False)
    assert "\x1b" not in plain
    assert "▀" not in plain
    for words in ("image 20, label", "parent", "in init.lmdb", "scores: cosine", "probabilities of teacher wrn101", "%"):
        assert words in plain


def test_a_narrow_terminal_shows_less_of_it(shown):
    lines = drawn(shown, colours=False, width=20).splitlines()
    assert max(map(len, lines)) <= 20


def test_banks_alone(tree, reference, tmp_path):
    bank = shutil.copy(tree.variations, tmp_path / "variations.lmdb")
    alone = look_at(bank, 3, None, reference)
    assert (alone.parent, alone.said["teacher"], alone.said["parent_bank"]) == (None, None, None)
    text = drawn(alone, colours=False)
    assert "its bank is not beside this one" in text
    assert "name it with --teacher" in text
    assert look_at(bank, 3, tree.teacher, reference).said["teacher"]["architecture"] == "wrn101"
    init = look_at(tree.init, 5, None, reference)
    assert (init.parent, init.said["parent"], init.said["teacher"]["parent"]) == (None, None, None)
    for index in (-1, 60):
        with pytest.raises(UserError, match=rf"no image {index}; it holds images 0 to 59"):
            look_at(tree.init, index, None, reference)


def test_measured_scores_are_shown_where_they_are_kept(tree, reference, tmp_path):
    shutil.copytree(tree.results, tmp_path / "results")
    bank = tmp_path / "results" / tree.init.relative_to(tree.results)
    scores = scores_of(bank, None, reference)
    write_scores(scores_file(bank), scores)
    said = look_at(bank, 11, None, reference).said
    assert said["measured"]["duplicate_of"] == 5
    assert said["measured"]["entropy"] == scores.columns["entropy"][11].item()
    assert "duplicate_of 5" in drawn(look_at(bank, 11, None, reference), colours=False)


def test_the_picture(shown, tmp_path):
    save_picture(shown, tmp_path / "x.png")
    sheet = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    cell = np.kron(shown.image[0].numpy(), np.ones((32, 32), np.uint8))
    parent = np.kron(shown.parent[0].numpy(), np.ones((32, 32), np.uint8))
    places = [(y, x) for y in range(sheet.shape[0] - 255) for x in range(sheet.shape[1] - 255)]
    corners = [[x for y, x in places if np.array_equal(sheet[y : y + 256, x : x + 256], one)] for one in (cell, parent)]
    assert [len(found) for found in corners] == [1, 1]
    assert corners[1][0] >= corners[0][0] + 256
    save_picture(shown, tmp_path / "y.png")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()
