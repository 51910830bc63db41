"""Export formats: every way back gives the bank's own bytes, and others read what is written."""

from __future__ import annotations

import io
import json
import tarfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image

from dfkd.bank.convert import FORMATS, format_of, import_bank
from dfkd.bank.format import Block
from dfkd.bank.parquet import export_parquet
from dfkd.bank.reader import BankReader
from dfkd.bank.webdataset import export_webdataset
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError


@pytest.fixture
def bank(banks, tmp_path):
    """Blocks of 5, 1 and 7 images; scores and parents; names, settings and lineage that JSON has to get right."""
    meta = banks.meta(
        kind="variations", lineage=[{"stage": "teacher", "sha256": "cd" * 32}], extra={"rate": 0.1, "names": ["é", None]}
    )
    with BankWriter(tmp_path / "work" / "bank.lmdb", meta) as writer:
        for number, count in enumerate((5, 1, 7)):
            writer.append(banks.block(number, count))
        writer.publish(tmp_path / "bank.lmdb")
    return tmp_path / "bank.lmdb"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_back_without_loss(banks, bank, tmp_path, kind, channels):
    if channels == 1:
        bank = banks.make("grey.lmdb", dataset=banks.info.model_copy(update={"channels": 1}))
    assert FORMATS[kind].export(bank, tmp_path / "out") == len(BankReader(bank))
    assert format_of(tmp_path / "out") == kind
    meta = import_bank(tmp_path / "out", tmp_path / "back.lmdb", None, None)
    assert (tmp_path / "back.lmdb").read_bytes() == bank.read_bytes()
    assert meta == BankReader(bank).meta


@pytest.mark.parametrize("kind", FORMATS)
def test_banks_without_scores_or_images(banks, tmp_path, kind):
    with BankWriter(tmp_path / "plain.work", banks.meta()) as writer:
        writer.append(Block(banks.block(0).images, banks.block(0).labels))
        writer.publish(tmp_path / "plain.lmdb")
    for bank in (tmp_path / "plain.lmdb", banks.make("empty.lmdb", blocks=range(0))):
        FORMATS[kind].export(bank, tmp_path / f"{bank.stem}-out")
        import_bank(tmp_path / f"{bank.stem}-out", tmp_path / "back.lmdb", None, None)
        assert (tmp_path / "back.lmdb").read_bytes() == bank.read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_banks_give_equal_bytes(bank, tmp_path, kind):
    contents = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        FORMATS[kind].export(bank, tmp_path / place / "out")
        files = [path for path in (tmp_path / place).rglob("*") if path.is_file()]
        contents.append({path.relative_to(tmp_path / place): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_growing_bank_is_exported_and_not_imported_as_a_whole_one(banks, tmp_path, kind):
    with BankWriter(tmp_path / "work.lmdb", banks.meta()) as writer:
        writer.append(banks.block(0))
        assert FORMATS[kind].export(writer.path, tmp_path / "out") == 5
    with pytest.raises(UserError, match="still being written; export it again once it is complete"):
        import_bank(tmp_path / "out", tmp_path / "back.lmdb", None, None)
    assert not (tmp_path / "back.lmdb").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_belongs_to_its_teacher(banks, bank, tmp_path, kind):
    FORMATS[kind].export(bank, tmp_path / "out")
    with pytest.raises(UserError, match="of teacher abababababab, not of cdcdcdcdcdcd; leave --teacher away"):
        import_bank(tmp_path / "out", tmp_path / "back.lmdb", banks.info, "cd" * 32)
    import_bank(tmp_path / "out", tmp_path / "back.lmdb", banks.info, "ab" * 32)
    assert (tmp_path / "back.lmdb").read_bytes() == bank.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_webdataset_library_reads_the_shards(banks, bank, tmp_path):
    export_webdataset(bank, tmp_path / "digits", shard_images=5)
    shards = sorted((tmp_path / "digits").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"digits-{number:06d}.tar" for number in range(3)]
    read = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("rgb8")
    samples = list(read.to_tuple("__key__", "png", "cls", "json"))
    arrays = BankReader(bank).load()
    assert [sample[0] for sample in samples] == [f"{index:08d}" for index in range(13)]
    assert np.array_equal(np.stack([sample[1] for sample in samples]), arrays.images.permute(0, 2, 3, 1))
    assert [sample[2] for sample in samples] == arrays.labels.tolist()
    said = samples[7][3]
    assert (said["index"], said["class"], said["parent"]) == (7, banks.info.classes[arrays.labels[7]], int(arrays.parents[7]))
    assert said["scores"]["oh"] == arrays.scores["oh"][7].item()
    import_bank(tmp_path / "digits", tmp_path / "back.lmdb", None, None)
    assert (tmp_path / "back.lmdb").read_bytes() == bank.read_bytes()


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_tar_files_of_others(banks, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    members = [("../../up.png", png(1)), ("../../up.cls", b"2"), ("__meta__/x.json", b"{}"), ("link.png", None)]
    write_tar(folder / "a.tar", [*members, ("/abs.jpg", png(3)), ("/abs.cls", b"0\n"), ("/abs.txt", b"a caption")])
    before = sorted(tmp_path.rglob("*"))
    meta = import_bank(folder, tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "bank.lmdb"]  # nothing was unpacked
    arrays = BankReader(tmp_path / "bank.lmdb").load()
    assert (meta.images, arrays.labels.tolist(), arrays.images[:, 0, 0, 0].tolist()) == (2, [2, 0], [1, 3])


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("a.png", png(1))], r"/a: no sample with a picture and a label \('cls'\)"),
        ([("a.cls", b"1")], r"/a: no sample with a picture and a label \('png'\)"),
        ([("a.png", png(1)), ("a.cls", b"one")], "no sample with a picture and a label"),
        ([("a.png", png(1)), ("a.cls", b"7")], "label 7, tiny has labels from 0 to 2"),
        ([("a.png", b"x"), ("a.cls", b"1")], "not an image that can be read"),
        ([("a.png", bytes((64 << 20) + 1)), ("a.cls", b"1")], "more than an image of a classifier"),
    ],
)
def test_bad_tar_files(banks, tmp_path, members, sentence):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=sentence):
        import_bank(tmp_path, tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match="not a tar file that can be read"):
        import_bank(tmp_path, tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    assert not (tmp_path / "bank.lmdb").exists()


def test_parquet_says_what_hugging_face_wants(banks, bank, tmp_path):
    export_parquet(bank, tmp_path / "hub", shard_images=6)
    files = sorted((tmp_path / "hub" / "data").iterdir())
    assert [file.name for file in files] == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    tables = [pq.read_table(file) for file in files]
    assert [len(table) for table in tables] == [6, 6, 1]
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": ["zero", "one", "two"], "_type": "ClassLabel"},
        "parent": {"dtype": "int64", "_type": "Value"},
        "scores": {name: {"dtype": "float32", "_type": "Value"} for name in ("bn", "oh")},
    }
    schema = tables[0].schema
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("scores").type == pa.struct([("bn", pa.float32()), ("oh", pa.float32())])
    rows, arrays = pa.concat_tables(tables).to_pylist(), BankReader(bank).load()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    assert np.array_equal(pixels, arrays.images.permute(0, 2, 3, 1))
    assert [row["label"] for row in rows] == arrays.labels.tolist()
    assert [row["parent"] for row in rows] == arrays.parents.tolist()
    assert [row["scores"]["oh"] for row in rows] == arrays.scores["oh"].tolist()
    assert rows[12]["image"]["path"] == "00000012.png"


def test_the_data_card_is_one(bank, tmp_path):
    import yaml

    export_parquet(bank, tmp_path / "hub")
    _, head, text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    features = {feature["name"]: feature for feature in head["dataset_info"]["features"]}
    assert features["label"]["dtype"]["class_label"]["names"] == {"0": "zero", "1": "one", "2": "two"}
    assert [score["name"] for score in features["scores"]["struct"]] == ["bn", "oh"]
    assert head["dataset_info"]["splits"] == [{"name": "train", "num_examples": 13}]
    assert "13 synthetic images of 3 classes" in text
    assert "ab" * 32 in text


def test_parquet_of_others(banks, tmp_path):
    rows = {"image": [{"bytes": png(value), "path": None} for value in (4, 5)], "label": [2, 0]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    import_bank(tmp_path / "x.parquet", tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    arrays = BankReader(tmp_path / "bank.lmdb").load()
    assert (arrays.labels.tolist(), arrays.images[:, 0, 0, 0].tolist()) == ([2, 0], [4, 5])
    pq.write_table(pa.table({"label": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no rows of images with labels"):
        import_bank(tmp_path / "x.parquet", tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a Parquet file"):
        import_bank(tmp_path / "x.parquet", tmp_path / "bank.lmdb", banks.info, "ab" * 32)


def test_hdf5_is_plain_arrays(banks, bank, tmp_path):
    FORMATS["hdf5"].export(bank, tmp_path / "bank.h5")
    arrays = BankReader(bank).load()
    with h5py.File(tmp_path / "bank.h5") as file:
        assert (list(file.attrs["classes"]), file.attrs["teacher_sha256"]) == (banks.info.classes, "ab" * 32)
        assert file["images"].chunks == (13, 3, 4, 4)
        assert torch.equal(torch.from_numpy(file["images"][()]), arrays.images)
        assert torch.equal(torch.from_numpy(file["parents"][()]), arrays.parents)
        assert torch.equal(torch.from_numpy(file["scores/bn"][()]), arrays.scores["bn"])
    with h5py.File(tmp_path / "bank.h5", "a") as file:
        file["labels"][3] = (file["labels"][3] + 1) % 3
    with pytest.raises(UserError, match="not what was exported"):
        import_bank(tmp_path / "bank.h5", tmp_path / "back.lmdb", None, None)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not an exported bank"):
        import_bank(tmp_path / "other.h5", tmp_path / "back.lmdb", None, None)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "bank.h5").read_bytes()[:3000])
    with pytest.raises(UserError, match="not a whole HDF5 file"):
        import_bank(tmp_path / "cut.h5", tmp_path / "back.lmdb", None, None)
    assert not (tmp_path / "back.lmdb").exists()


def test_what_is_no_export(banks, tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for source, sentence in (("absent", "no such file or folder"), ("x.txt", "neither a folder nor a Parquet or HDF5 file")):
        with pytest.raises(UserError, match=sentence):
            import_bank(tmp_path / source, tmp_path / "bank.lmdb", banks.info, "ab" * 32)
