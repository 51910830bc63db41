"""Vanilla distillation on a transfer set: the loss, each kind of set, and what is refused."""

import json
import math

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from dfkd.bank.reader import BankReader
from dfkd.config import check_config
from dfkd.datasets.prepared import read_split, write_prepared
from dfkd.datasets.transfer import UNLABELLED, read_transfer_set, transfer_sha256
from dfkd.distillation.distill import distill
from dfkd.distillation.kd import VanillaKD
from dfkd.distillation.objective import Batch
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.methods import METHODS, KDSettings, transfer_set
from dfkd.models import build_model

SMALL = {"precision": "reference", "epochs": 2, "kd_steps": 8, "batch_size": 30, "milestones": [1], "temperature": 4.0}


@pytest.fixture
def pictures(tiny_data, tmp_path):
    """A folder of 40 pictures of the data set, at twice the size, in folders that mean nothing."""
    images, _ = read_split(tiny_data.data, "train")
    for index, image in enumerate(images[:40]):
        path = tmp_path / "pictures" / f"shelf{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).resize((16, 16)).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def others(tiny_data, tmp_path):
    """Another data set of the same shape, with two classes of its own."""
    images, labels = read_split(tiny_data.data, "train")
    info = tiny_data.info.model_copy(update={"name": "others", "classes": ["here", "there"]})
    write_prepared(tmp_path / "others.h5", info, {"train": (255 - images[:60], labels[:60] % 2)}, {})
    return tmp_path / "others.h5"


def run(tiny_teacher, tiny_data, runtime, folder, data=None, banks=(), **changes):
    settings = KDSettings(**(SMALL | changes))
    output = folder / "student.safetensors"
    distill(tiny_teacher, list(banks), "wrn101", tiny_data.test, settings, 0, output, folder / "state", runtime, "kd", data)
    return json.loads((folder / "student.json").read_text())


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.9, 0.1), (0.0, 1.0)])
def test_the_loss_is_the_formula(tiny_data, reference, alpha, beta):
    info, settings = tiny_data.info, KDSettings(precision="reference", alpha=alpha, beta=beta, temperature=4.0)
    torch.manual_seed(0)
    teacher, student = (build_model("wrn101", 3, 1, 8).double() for _ in range(2))
    teacher.eval().requires_grad_(False)
    objective = VanillaKD(teacher, student, info, settings, reference)
    images, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = objective.losses(Batch(images, labels))  # in single precision
    wanted, given = teacher(images), student.train()(images)
    kd = 0.0
    for t, s in zip((wanted / 4).softmax(1), (given / 4).softmax(1), strict=True):
        kd += sum(p * (math.log(p) - math.log(q)) for p, q in zip(t.tolist(), s.tolist(), strict=True)) * 16 / 6
    ce = -sum(math.log(row[label]) for row, label in zip(given.softmax(1).tolist(), labels.tolist(), strict=True)) / 6
    assert losses["kd"].item() == pytest.approx(kd, rel=2e-4)
    assert losses["ce"].item() == (pytest.approx(ce, rel=1e-5) if beta else 0)
    assert losses["loss"].item() == pytest.approx(alpha * kd + beta * ce, rel=2e-4)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_labels_count_when_beta_says_so(tiny_teacher, tiny_data, reference, tmp_path):
    card = run(tiny_teacher, tiny_data, reference, tmp_path, tiny_data.data, beta=0.5, epochs=6, milestones=[4])
    assert card["lineage"]["data"] == file_sha256(tiny_data.data)
    assert card["notes"] == {"transfer_set": "train"}
    history = (tmp_path / "history.csv").read_text().splitlines()
    first, last = (dict(zip(history[0].split(","), row.split(","), strict=True)) for row in (history[1], history[-1]))
    assert float(last["ce"]) < float(first["ce"])
    assert float(last["acc1"]) > 80  # chance is 33


def test_another_data_set_gives_its_images_and_no_labels(tiny_teacher, tiny_data, others, reference, tmp_path):
    images, labels = read_transfer_set(others, "dataset", tiny_data.info)
    assert torch.equal(images, read_split(others, "train")[0])
    assert set(labels.tolist()) == {UNLABELLED}
    card = run(tiny_teacher, tiny_data, reference, tmp_path, others, transfer_set="dataset:others")
    assert card["lineage"]["data"] == file_sha256(others)
    assert len(BankReader(tmp_path / "bank.lmdb")) == 0


def test_a_folder_gives_its_images_at_any_depth(tiny_teacher, tiny_data, pictures, reference, tmp_path):
    images, labels = read_transfer_set(pictures, "folder", tiny_data.info)
    assert (images.shape, images.dtype) == ((40, 1, 8, 8), torch.uint8)
    assert set(labels.tolist()) == {UNLABELLED}
    card = run(tiny_teacher, tiny_data, reference, tmp_path, pictures, transfer_set=f"folder:{pictures}")
    assert card["lineage"]["data"] == transfer_sha256(pictures)
    before = transfer_sha256(pictures)
    (pictures / "shelf0" / "0.png").rename(pictures / "shelf0" / "x.png")
    assert transfer_sha256(pictures) != before


def test_a_bank_is_the_non_adversarial_variant_of_cmi(tiny_teacher, tiny_data, tiny_bank, reference, tmp_path):
    same = {"precision": "reference", "epochs": 2, "kd_steps": 4, "batch_size": 12, "milestones": [1], "temperature": 20.0}
    card = run(tiny_teacher, tiny_data, reference, tmp_path / "kd", banks=[tiny_bank], transfer_set="bank:init", **same)
    assert "data" not in card["lineage"]
    settings = METHODS["cmi-nonadversarial"].settings(**same)
    output = tmp_path / "cmi" / "student.safetensors"
    arguments = (settings, 0, output, tmp_path / "state", reference, "cmi-nonadversarial")
    distill(tiny_teacher, [tiny_bank], "wrn101", tiny_data.test, *arguments)
    accuracy = [(tmp_path / name / "history.csv").read_text().splitlines()[-1].split(",")[-2:] for name in ("kd", "cmi")]
    assert accuracy[0] == accuracy[1]


def test_images_of_another_shape_are_refused(tiny_data, tmp_path):
    labels = torch.zeros(4, dtype=torch.int64)
    colour = {"channels": 3, "mean": [0.3] * 3, "std": [0.3] * 3}
    for changes, shape in (({"image_size": 12}, (1, 12, 12)), (colour, (3, 8, 8))):
        info = tiny_data.info.model_copy(update=changes)
        write_prepared(tmp_path / "odd.h5", info, {"train": (torch.zeros(4, *shape, dtype=torch.uint8), labels)}, {})
        given = f"{shape[1]}×{shape[1]} with {shape[0]} channel"
        with pytest.raises(UserError, match=f"its images are {given}s?, the teacher takes 8×8 with 1 channel;"):
            read_transfer_set(tmp_path / "odd.h5", "dataset", tiny_data.info)


def test_rubbish_is_refused(tiny_data, others, pictures, tmp_path):
    with pytest.raises(UserError, match="its classes are not those of the teacher's data set bars"):
        read_transfer_set(others, "train", tiny_data.info)
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no image"):
        read_transfer_set(tmp_path / "empty", "folder", tiny_data.info)
    with pytest.raises(UserError, match="no such folder"):
        read_transfer_set(tmp_path / "nowhere", "folder", tiny_data.info)
    (pictures / "shelf1" / "notes.txt").write_text("not an image")
    with pytest.raises(UserError, match=r"1 of 41 files cannot be read, the first is shelf1/notes\.txt"):
        read_transfer_set(pictures, "folder", tiny_data.info)


@pytest.mark.parametrize("wrong", ["", "test", "dataset:", "folder:", "bank", "cifar100", "train:x"])
def test_a_transfer_set_of_no_kind_is_refused(wrong):
    with pytest.raises(ValidationError, match="expected train, dataset:NAME"):
        KDSettings(transfer_set=wrong)


def test_weights_without_effect_are_refused():
    with pytest.raises(ValidationError, match="beta has no effect"):
        KDSettings(transfer_set="dataset:cifar100", beta=0.1)
    with pytest.raises(ValidationError, match="alpha and beta are both 0"):
        KDSettings(alpha=0)
    assert transfer_set("kd", KDSettings(transfer_set="bank:init", beta=0.1)) == ("bank", "init")
    assert transfer_set("real", METHODS["real"].settings()) == ("train", "")
    assert transfer_set("dda", METHODS["dda"].settings()) == ("", "")


def test_an_unknown_data_set_is_refused_with_the_config():
    values = {"datasets": {"cifar100": {"source": "torchvision:CIFAR100"}}}
    with pytest.raises(UserError, match="here: kd: transfer_set: unknown data set 'cifar10'; the nearest known: cifar100"):
        check_config(values | {"methods": {"kd": {"defaults": {"transfer_set": "dataset:cifar10"}}}}, "here")


@pytest.mark.parametrize(
    ("changes", "data", "bank", "sentence"),
    [
        ({}, False, False, "distils on transfer_set train; give the images with --data"),
        ({"transfer_set": "bank:init"}, False, False, "distils on transfer_set bank; give the bank with --bank"),
        ({"transfer_set": "bank:init"}, True, True, "leave --data away"),
        ({}, True, True, "leave --bank away"),
    ],
)
def test_images_that_nobody_looks_at_are_refused(
    tiny_teacher, tiny_data, tiny_bank, reference, tmp_path, changes, data, bank, sentence
):
    banks = [tiny_bank] if bank else []
    with pytest.raises(UserError, match=sentence):
        run(tiny_teacher, tiny_data, reference, tmp_path, tiny_data.data if data else None, banks, **changes)
