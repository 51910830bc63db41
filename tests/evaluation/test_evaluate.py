import json

import h5py
import pytest
import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import write_prepared
from dfkd.datasets.views import normalise
from dfkd.errors import UserError
from dfkd.evaluation import metrics
from dfkd.evaluation.evaluate import evaluate
from dfkd.evaluation.formats import read_metrics
from dfkd.evaluation.predict import predict, read_predictions, write_predictions
from dfkd.models import build_model, count_parameters
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.runtime import Runtime
from dfkd.settings import EvaluateSettings

INFO = DatasetInfo(
    name="tiny", classes=["a", "b", "c"], image_size=8, channels=1, mean=[0.3], std=[0.2], crop_padding=1, flip=False
)


def save(path, architecture, info=INFO, seed=0, **fields):
    torch.manual_seed(seed)
    model = build_model(architecture, len(info.classes), info.channels, info.image_size)
    card = WeightsCard(
        architecture=architecture, dataset=info, stage_version=1, settings={}, seed=seed,
        **{"role": "student", "stage": "distill dda", "metrics": {"acc1": 50.0, "epoch": 4.0}} | fields,
    )  # fmt: skip
    return save_weights(path, model, card)


@pytest.fixture
def job(tmp_path):
    """Arguments of `evaluate` for a random teacher and student on 50 random images."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(50) % 2  # no image of class c
    write_prepared(tmp_path / "tiny.test.h5", INFO, {"test": (images, labels)}, {})
    teacher = save(tmp_path / "teacher.safetensors", "wrn101", role="teacher", stage="teacher", metrics={})
    lineage = {"teacher": teacher.sha256}
    save(tmp_path / "student.safetensors", "wrn101", seed=3, lineage=lineage)
    save(tmp_path / "best.safetensors", "wrn101", seed=3, lineage=lineage, metrics={"epoch": 2.0})
    return {
        "checkpoints": [tmp_path / "student.safetensors"],
        "teacher": tmp_path / "teacher.safetensors",
        "best": tmp_path / "best.safetensors",
        "test": tmp_path / "tiny.test.h5",
        "settings": EvaluateSettings(batch_size=16),
        "output": tmp_path / "out",
        "pictures": False,
        "runtime": Runtime.create("reference", "cpu"),
    }


def test_metrics_are_those_of_the_networks(job):
    evaluate(**job)
    teacher, card = load_model(job["teacher"])
    student, _ = load_model(job["checkpoints"][0])
    with h5py.File(job["test"]) as file:
        images, labels = (torch.from_numpy(file["test"][key][()]) for key in ("images", "labels"))
    with torch.no_grad():
        unit = normalise(images.float() / 255, INFO)
        expected, wanted = student(unit), teacher(unit)
    found = read_metrics(job["output"] / "metrics.json")
    assert found.last.acc1 == metrics.accuracy(expected, labels)
    assert found.last.agree1 == metrics.agreement(expected, wanted)
    assert found.last.lp == pytest.approx(metrics.probability_loyalty(expected, wanted), abs=1e-4)
    assert found.last.nll == pytest.approx(metrics.nll(expected, labels), rel=1e-5)
    assert found.last.per_class[2] is None
    assert found.teacher.acc1 == metrics.accuracy(wanted, labels)
    assert found.teacher.params == count_parameters(teacher)
    assert found.teacher.sha256 == card.sha256
    assert (found.dataset, found.method, found.seed, found.images) == ("tiny", "dda", 3, 50)
    assert (found.last.epoch, found.best.epoch) == (4, 2)


def test_predictions_hold_the_logits(job):
    evaluate(**job)
    found = read_predictions(job["output"] / "predictions.h5")
    assert sorted(found.logits) == ["best", "student", "teacher"]
    assert found.logits["student"].shape == (50, 3)
    assert found.logits["student"].dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert found.attributes["teacher"] == "wrn101"
    assert json.loads(found.attributes["classes"]) == ["a", "b", "c"]
    assert metrics.accuracy(found.logits["best"], found.labels) == read_metrics(job["output"] / "metrics.json").best.acc1


def test_without_the_best_epoch(job):
    evaluate(**job | {"best": None})
    assert json.loads((job["output"] / "metrics.json").read_text())["best"] is None
    assert "best" not in read_predictions(job["output"] / "predictions.h5").logits


def test_equal_runs_write_equal_bytes(job, tmp_path):
    evaluate(**job)
    evaluate(**job | {"output": tmp_path / "again"})
    for name in ("metrics.json", "predictions.h5"):
        assert (job["output"] / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with h5py.File(job["output"] / "predictions.h5") as file:
        assert all(file[key].chunks is not None for key in file)
        assert all(h5py.h5o.get_info(file[key].id).mtime == 0 for key in file)


def test_costs_lie_beside_the_metrics(job):
    evaluate(**job)
    written = json.loads((job["output"] / "metrics.cost.json").read_text())
    assert written["teacher_queries"] == 50
    assert written["seconds"] > 0
    assert written["hardware"]["device"] == "cpu"


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batch_size_does_not_matter(job, batch_size):
    model, _ = load_model(job["checkpoints"][0])
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    whole = predict(model, images, INFO, job["runtime"], batch_size=20)
    assert torch.allclose(predict(model, images, INFO, job["runtime"], batch_size=batch_size), whole, atol=1e-5)


def test_fast_is_near_reference(job):
    model, _ = load_model(job["checkpoints"][0])
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    reference = predict(model, images, INFO, job["runtime"])
    fast = Runtime.create("fast", "cpu")
    assert torch.allclose(predict(fast.place(model), images, INFO, fast), reference, atol=0.03 * float(reference.abs().max()))
    Runtime.create("reference", "cpu")


def test_predict_leaves_the_mode_and_the_statistics(job):
    model, _ = load_model(job["checkpoints"][0])
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    predict(model, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), INFO, job["runtime"])
    assert model.training
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_diverged_network_is_refused(job):
    model, _ = load_model(job["checkpoints"][0])
    for values in model.parameters():
        values.fill_(float("nan"))
    with pytest.raises(UserError, match=r"NaN or infinite logits on the images of tiny.*train it again"):
        predict(model, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), INFO, job["runtime"])


def check_refused(job, pattern):
    with pytest.raises(UserError, match=pattern):
        evaluate(**job)
    assert not job["output"].exists()


def test_student_of_another_teacher_is_refused(job):
    save(job["checkpoints"][0], "wrn101", lineage={"teacher": "0" * 64})
    check_refused(
        job, r"student\.safetensors: distilled from a teacher with SHA-256 000000000000…, but .*teacher\.safetensors has"
    )


def test_best_of_another_run_is_refused(job):
    save(job["best"], "wrn101", seed=4)
    check_refused(job, r"best\.safetensors: wrn101 of seed 4, not of the same run as .*student\.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "data set other against tiny"),
        ({"classes": ["a", "b", "c", "d"]}, "4 classes against 3"),
        ({"classes": ["c", "b", "a"]}, "the classes have other names or another order"),
        ({"image_size": 16}, "image size 16 against 8"),
        ({"channels": 3, "mean": [0.3] * 3, "std": [0.2] * 3}, "channels 3 against 1"),
    ],
)
def test_student_and_test_split_of_other_data_are_refused(job, change, words):
    other = INFO.model_copy(update=change)
    test, student = job["test"], job["checkpoints"][0]
    save(student.with_name("other.safetensors"), "wrn101", other)
    check_refused(
        job | {"checkpoints": [student.with_name("other.safetensors")]}, rf"other\.safetensors: student and teacher .*{words}"
    )
    images = torch.zeros(6, *other.shape, dtype=torch.uint8)
    write_prepared(test, other, {"test": (images, torch.arange(6) % 3)}, {})
    check_refused(job, rf"tiny\.test\.h5: not the test split of .*teacher\.safetensors: {words}")


def test_only_the_test_split_is_read(job):
    images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
    write_prepared(job["test"], INFO, {"train": (images, torch.arange(6) % 3)}, {})
    check_refused(job, r"tiny\.test\.h5.*test")


def test_other_files_are_no_predictions(tmp_path):
    with pytest.raises(UserError, match=r"a\.h5: no such file"):
        read_predictions(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"b\.h5: not a whole HDF5 file"):
        read_predictions(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match=r"c\.h5: not a predictions file"):
        read_predictions(tmp_path / "c.h5")
    write_predictions(tmp_path / "d.h5", {"teacher": torch.ones(2000, 2)}, torch.zeros(2000), {})
    whole = (tmp_path / "d.h5").read_bytes()
    (tmp_path / "d.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"d\.h5: not a whole HDF5 file"):
        read_predictions(tmp_path / "d.h5")


def test_a_student_from_scratch_is_measured_alone(job, tmp_path):
    save(tmp_path / "scratch.safetensors", "wrn101", role="teacher", stage="teacher", seed=5)
    evaluate(**job | {"teacher": None, "best": None, "checkpoints": [tmp_path / "scratch.safetensors"]})
    found = read_metrics(job["output"] / "metrics.json")
    assert (found.method, found.seed, found.teacher, found.best, found.data_free) == ("scratch", 5, None, None, False)
    assert (found.last.agree1, found.last.lp, found.last.one_minus_js_distance) == (None, None, None)
    assert 0 <= found.last.acc1 <= 100
    assert set(read_predictions(job["output"] / "predictions.h5").logits) == {"student"}
    assert json.loads((job["output"] / "metrics.cost.json").read_text())["teacher_queries"] == 0


def test_a_distilled_student_can_be_measured_alone(job):
    evaluate(**job | {"teacher": None, "best": None})
    found = read_metrics(job["output"] / "metrics.json")
    assert (found.method, found.data_free, found.teacher, found.last.agree1) == ("dda", True, None, None)


def test_a_run_on_real_images_is_not_data_free(job, tmp_path):
    lineage = json.loads((tmp_path / "student.json").read_text())["lineage"]
    for name in ("student", "best"):
        save(
            tmp_path / f"{name}.safetensors",
            "wrn101",
            seed=3,
            lineage=lineage | {"data": "d" * 64},
            notes={"transfer_set": "train"},
        )
    evaluate(**job)
    assert read_metrics(job["output"] / "metrics.json").data_free is False
    assert read_metrics(job["output"] / "metrics.json").notes == {"transfer_set": "train"}
