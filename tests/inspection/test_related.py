import shutil

from dfkd.inspection.related import child_banks, find_teacher, parent_bank


def test_the_teacher_is_found_by_its_sha256(tree):
    assert find_teacher(tree.variations, tree.card.sha256) == tree.teacher
    assert find_teacher(tree.variations, "0" * 64) is None


def test_cards_that_are_none_are_passed_over(tree, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(tree.results, results)
    (results / "teachers" / "aa").mkdir()
    (results / "teachers" / "aa" / "broken.json").write_text("{")
    (results / "teachers" / "aa" / "list.json").write_text("[1]")
    found = find_teacher(results / "banks" / "bars_wrn101" / "init.lmdb", tree.card.sha256)
    assert found == results / "teachers" / "bars_wrn101" / "weights.safetensors"


def test_parents_and_children(tree, tmp_path):
    assert parent_bank(tree.variations) == tree.init
    assert parent_bank(tree.rejected) == tree.init
    assert parent_bank(tree.init) is None
    assert child_banks(tree.init) == [tree.rejected, tree.variations]
    assert child_banks(tree.variations) == []
    shutil.copy(tree.variations, tmp_path / "variations.lmdb")
    (tmp_path / "init.lmdb").write_bytes(b"rubbish")
    assert parent_bank(tmp_path / "variations.lmdb") is None
