import pytest
import torch

from dfkd.bank.reader import BankReader
from dfkd.bank.verify import verify_bank
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.inspection.prune import prune_bank
from dfkd.inspection.related import parent_bank


def test_the_others_stay_as_they_are(tree, reference, tmp_path):
    before = BankReader(tree.variations).load()
    falls = (before.scores["cosine"] < 0.6) | (before.labels == 1)
    counts = prune_bank(tree.variations, "cosine < 0.6 or label == middle", tmp_path / "kept.lmdb", None, reference)
    reader = BankReader(tmp_path / "kept.lmdb", teacher_sha256=tree.card.sha256)
    after = reader.load()
    assert torch.equal(after.images, before.images[~falls])
    assert torch.equal(after.labels, before.labels[~falls])
    assert torch.equal(after.parents, before.parents[~falls])
    assert torch.equal(after.scores["cosine"], before.scores["cosine"][~falls])
    old = BankReader(tree.variations).meta
    step = {
        "stage": "prune", "where": "cosine < 0.6 or label == middle", "images": len(falls), "kept": int((~falls).sum()),
        "sha256": file_sha256(tree.variations),
    }  # fmt: skip
    assert reader.meta == old.model_copy(
        update={"lineage": [*old.lineage, step], "images": len(after), "blocks": reader.meta.blocks}
    )
    assert verify_bank(tmp_path / "kept.lmdb") == []
    assert (counts["images"], counts["removed"], counts["kept"]) == (len(falls), int(falls.sum()), len(after))
    assert counts["classes"]["middle"]["images"] == counts["classes"]["middle"]["removed"] == int((before.labels == 1).sum())


def test_pruned_banks_still_know_their_parents(tree, reference, tmp_path):
    folder = tree.variations.parent
    try:
        prune_bank(tree.variations, "label == top", folder / "fewer.lmdb", None, reference)
        assert parent_bank(folder / "fewer.lmdb") == tree.init
        prune_bank(tree.init, "label == top", folder / "init2.lmdb", None, reference)
        assert parent_bank(tree.variations) == tree.init  # not the pruned one, whose indices are others
    finally:
        for name in ("fewer", "init2"):
            (folder / f"{name}.lmdb").unlink(missing_ok=True)


def test_what_the_teacher_says_decides(tree, reference, tmp_path):
    prune_bank(tree.init, "constant == 1 or duplicate_of >= 0", tmp_path / "clean.lmdb", None, reference)
    stays = torch.tensor([index not in (7, 11) for index in range(60)])
    assert torch.equal(BankReader(tmp_path / "clean.lmdb").load().images, tree.images[stays])


def test_a_shard_is_none_any_more(tree, reference, tmp_path):
    meta = BankReader(tree.init).meta
    extra = {"shard": {"index": 1, "count": 2, "first_block": 0, "blocks": 1}, "note": 1}
    with BankWriter(tmp_path / "w.lmdb", meta.model_copy(update={"extra": extra})) as writer:
        writer.append_images(tree.images, tree.labels)
        writer.publish(tmp_path / "shard.lmdb")
    prune_bank(tmp_path / "shard.lmdb", "label == top", tmp_path / "kept.lmdb", None, reference)
    assert BankReader(tmp_path / "kept.lmdb").meta.extra == {"note": 1}


def test_refusals_write_nothing(tree, reference, tmp_path):
    def refused(sentence, bank, condition, output):
        before = {path: path.read_bytes() for path in (tree.init, tree.variations)}
        with pytest.raises(UserError, match=sentence):
            prune_bank(bank, condition, output, None, reference)
        assert {path: path.read_bytes() for path in before} == before
        assert not (tmp_path / "kept.lmdb").exists()

    refused(r"init\.lmdb: is the bank to be pruned; write the new one under another name", tree.init, "label == top", tree.init)
    (tmp_path / "link.lmdb").symlink_to(tree.init)
    refused("is the bank to be pruned", tree.init, "label == top", tmp_path / "link.lmdb")
    refused("'label >= 0' holds for all 60 images and would leave none", tree.init, "label >= 0", tmp_path / "kept.lmdb")
    refused("'' holds for all 60 images", tree.init, "", tmp_path / "kept.lmdb")
    refused("no column 'colour'", tree.init, "colour == 1", tmp_path / "kept.lmdb")
    with BankWriter(tmp_path / "growing.lmdb", BankReader(tree.init).meta) as writer:
        writer.append_images(tree.images[:9], tree.labels[:9])
    refused("incomplete, 9 images", tmp_path / "growing.lmdb", "label == top", tmp_path / "kept.lmdb")
    assert prune_bank(tmp_path / "growing.lmdb", "label == top", None, None, reference)["removed"] == 3
