"""Pages of a bank against the bank read by other means."""

import io

import numpy as np
import pytest
from PIL import Image
from viewer_tree import CHECKPOINT, INIT, VARIATIONS

from dfkd.bank.file import BankFile
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.inspection.scores import scores_of
from dfkd.inspection.viewer.index import BankIndex, Indexes
from dfkd.inspection.viewer.library import Library
from dfkd.inspection.viewer.outline import reduced


@pytest.fixture(scope="module")
def stored(folder):
    return BankReader(folder.results / VARIATIONS).load()


def test_a_page_holds_the_images_of_the_bank(frame, stored):
    page = frame("page", bank=VARIATIONS, size=30, page=1)
    assert (page.total, page.start) == (len(stored), 30)
    assert page.columns["index"] == list(range(30, 60))
    assert np.array_equal(page.pixels, stored.images[30:60])
    assert page.columns["label"] == stored.labels[30:60].tolist()
    assert page.columns["parent"] == stored.parents[30:60].tolist()
    assert np.allclose(page.columns["cosine"], stored.scores["cosine"][30:60], rtol=1e-5)


def test_sorted_falling_and_rising_with_ties_in_the_order_of_the_bank(frame, stored):
    cosine = stored.scores["cosine"].numpy()
    rising = [frame("page", bank=VARIATIONS, sort="cosine", size=40, page=page).columns["index"] for page in range(3)]
    assert [i for page in rising for i in page] == sorted(range(len(stored)), key=lambda i: (cosine[i], i))
    falling = frame("page", bank=VARIATIONS, sort="-variation", size=500).columns["index"]
    variation = stored.scores["variation"].numpy()
    assert falling == sorted(range(len(stored)), key=lambda i: (-variation[i], i))
    assert frame("page", bank=VARIATIONS, sort="-index", size=3).columns["index"] == [len(stored) - 1 - i for i in range(3)]


def test_filtered_by_condition_and_class(frame, stored):
    page = frame("page", bank=VARIATIONS, where="0.5 < cosine and label != top", **{"class": "0,1"}, sort="-cosine", size=500)
    cosine, label = stored.scores["cosine"].numpy(), stored.labels.numpy()
    expected = [i for i in np.argsort(-cosine, kind="stable").tolist() if cosine[i] > 0.5 and label[i] == 1]
    assert page.columns["index"] == expected
    assert page.total == len(expected) > 0
    assert np.array_equal(page.pixels, stored.images[expected])
    nothing = frame("page", bank=VARIATIONS, where="cosine > 2")
    assert (nothing.total, nothing.columns["index"], nothing.pixels.size) == (0, [], 0)
    beyond = frame("page", bank=VARIATIONS, page=99)
    assert (beyond.total, beyond.columns["index"]) == (len(stored), [])


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"where": "cosin > 1"}, "no column 'cosin'; the nearest known: cosine"),
        ({"where": "__import__('os').remove('x') == 1"}, "neither a column nor a number"),
        ({"sort": "beauty"}, "sort by 'beauty': no such column"),
        ({"page": "-1"}, "page=-1: not a whole number"),
        ({"page": "1e3"}, "not a whole number"),
        ({"size": "100000"}, "size=100000: not a whole number from 1 to 500"),
        ({"class": "1,x"}, "class=x"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(client, parameters, sentence):
    response = client.get("/api/page", params={"bank": VARIATIONS, **parameters})
    assert response.status_code == 422
    assert sentence in response.json()["error"]


def test_named_images_and_one_as_a_file(client, frame, folder):
    images = BankReader(folder.results / INIT).load().images
    found = frame("images", bank=INIT, index="7,3,7")
    assert found.columns["index"] == [7, 3, 7]
    assert np.array_equal(found.pixels, images[[7, 3, 7]])
    picture = Image.open(io.BytesIO(client.get("/api/png", params={"bank": INIT, "index": 3}).content))
    assert np.array_equal(np.asarray(picture), images[3, 0])
    refused = client.get("/api/png", params={"bank": INIT, "index": 60})
    assert (refused.status_code, "image 60 of 60" in refused.json()["error"]) == (422, True)


def test_large_images_are_reduced_to_means():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 200, 200), dtype=np.uint8)
    small = reduced(images, 96)
    assert small.shape == (2, 3, 66, 66)
    assert small[1, 2, 5, 65] == round(images[1, 2, 15:18, 195:198].mean())
    assert reduced(images, 200) is images


def test_a_growing_bank_is_read_on_where_it_ended(own_folder, monkeypatch):
    library = Library(own_folder.results)
    indexes = Indexes(library)
    name = f"{CHECKPOINT}/bank.lmdb"
    before = indexes.get(name)
    assert len(before) == 10
    assert indexes.get(name) is before
    with BankWriter(own_folder.growing, own_folder.meta.model_copy(update={"extra": {"method": "dda"}})) as writer:
        writer.append_images(own_folder.run_images[10:], own_folder.run_labels[10:])
        read = []
        gather = BankIndex._own

        def noting(self, former):
            read.append((former is before, self.file.meta.blocks))
            return gather(self, former)

        monkeypatch.setattr(BankIndex, "_own", noting)
        after = indexes.get(name)
        assert read == [(True, 2)]
        assert np.array_equal(after.columns["label"], own_folder.run_labels)
        assert np.array_equal(after.file.pixels([9, 10, 29]), own_folder.run_images[[9, 10, 29]])
        writer.truncate(1)  # a resumed run drops what it had not saved
        writer.append_images(own_folder.run_images[20:], own_folder.run_labels[20:] * 0 + 2)
        again = indexes.get(name)
    assert again.columns["label"].tolist() == own_folder.run_labels[:10].tolist() + [2] * 10


def test_only_new_blocks_of_a_growing_bank_are_gathered(own_folder, monkeypatch):
    indexes = Indexes(Library(own_folder.results))
    name = f"{CHECKPOINT}/bank.lmdb"
    indexes.get(name)
    firsts = []
    gather = BankFile.gather
    monkeypatch.setattr(
        BankFile, "gather", lambda self, images=None, first=0: firsts.append(first) or gather(self, images, first)
    )
    with BankWriter(own_folder.growing, own_folder.meta.model_copy(update={"extra": {"method": "dda"}})) as writer:
        writer.append_images(own_folder.run_images[10:], own_folder.run_labels[10:])
    assert len(indexes.get(name)) == 30
    assert firsts == [1]


def test_neighbours_are_those_of_the_cosine(folder, reference):
    index = Indexes(Library(folder.results)).get(INIT)
    scores = scores_of(folder.results / INIT, None, reference)
    index.scores = scores
    unit = scores.features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit[5]
    expected = [i for i in np.argsort(-cosines, kind="stable").tolist() if i != 5][:6]
    rows, found = index.neighbours(scores.features[5], 6, without=5)
    assert rows[0] == 11  # the twin of 5
    assert np.allclose(found, cosines[rows], atol=1e-3)
    assert np.allclose(cosines[rows], cosines[expected], atol=1e-3)
    everything, _ = index.neighbours(scores.features[5], 500, without=5)
    assert sorted(everything.tolist()) == [i for i in range(60) if i != 5]
