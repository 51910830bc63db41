import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dfkd.bank.reader import BankReader
from dfkd.cli import app
from dfkd.datasets.prepared import read_split, write_prepared
from dfkd.errors import UserError
from dfkd.evaluation import class_accuracy, feature_map
from dfkd.evaluation.class_accuracy import plot_class_accuracy
from dfkd.evaluation.disagreement import choose_disagreements, describe, plot_disagreement
from dfkd.evaluation.evaluate import evaluate
from dfkd.evaluation.evaluated import balanced_subset, images_per_class
from dfkd.evaluation.feature_map import embed, penultimate_features, plot_feature_map
from dfkd.evaluation.picture_names import EVALUATION_PICTURES
from dfkd.evaluation.pictures import open_run
from dfkd.evaluation.reliability import plot_reliability
from dfkd.settings import EvaluateSettings

PICTURES = [f"{name}.png" for name in EVALUATION_PICTURES]


def changed(evaluated, **logits):
    return dataclasses.replace(evaluated, logits=evaluated.logits | logits)


def alone(evaluated):
    """The student without its teacher."""
    parts = {key: {"student": getattr(evaluated, key)["student"]} for key in ("names", "models", "logits")}
    return dataclasses.replace(evaluated, **parts)


def ink(path):
    counts = Image.open(path).convert("L").histogram()
    return 1 - counts[255] / sum(counts)


def sure(choice, confidence):
    """Logits over three classes of which `choice` has this probability."""
    rest = (1 - confidence) / 2
    return torch.tensor([confidence if label == choice else rest for label in range(3)]).log()


def test_the_subset_is_balanced_and_always_the_same():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    found = balanced_subset(labels, 30)
    assert torch.bincount(labels[found]).tolist() == [14, 3, 13]
    assert torch.equal(found, found.unique())
    assert torch.equal(found, balanced_subset(labels, 30))
    assert balanced_subset(labels, 500).tolist() == list(range(103))
    assert max(found.tolist()) > 80  # drawn, not the first of each class


def test_the_surest_disagreements_are_chosen_class_by_class(evaluated):
    labels = evaluated.labels  # 0, 1, 2, 0, …
    teacher = torch.stack([sure(int(label), 0.9) for label in labels])
    student = teacher.clone()
    confidences = {0: 0.5, 3: 0.7, 6: 0.6, 1: 0.8, 4: 0.4}  # by image; the student chooses another class there
    for index, confidence in confidences.items():
        student[index] = sure((int(labels[index]) + 1) % 3, confidence)
    teacher[3] = sure(0, 0.45)  # then the less sure one is the teacher
    toy = changed(evaluated, teacher=teacher, student=student)
    assert choose_disagreements(toy).tolist() == [6, 0, 3, 1, 4]
    assert choose_disagreements(toy, 3).tolist() == [6, 0, 1]
    assert describe(toy, 3) == (
        "Teacher and student disagree on 5 of 60 test images; 3 of them shown, those of which both are surest, class by class\n"
        "Right in these: the teacher 5, the student 0, neither 0"
    )


def test_no_disagreement_and_no_teacher(evaluated, tmp_path):
    same = changed(evaluated, student=evaluated.logits["teacher"])
    assert describe(same, 0) == "Teacher and student agree on all 60 test images"
    plot_disagreement(same, tmp_path / "none.png")
    assert 0 < ink(tmp_path / "none.png") < 0.2
    single = alone(evaluated)
    wrong = (single.logits["student"].argmax(1) != single.labels).nonzero()[:, 0]
    assert set(choose_disagreements(single, 100).tolist()) == set(wrong.tolist())
    assert describe(single, len(wrong)) == f"The student is wrong on {len(wrong)} of 60 test images"


def test_images_per_class_are_those_of_all_banks(tiny_bank, evaluated):
    classes = evaluated.info.classes
    expected = torch.bincount(BankReader(tiny_bank).load().labels, minlength=3)
    assert torch.equal(images_per_class([tiny_bank, tiny_bank], classes), 2 * expected)
    assert images_per_class([], classes).tolist() == [0, 0, 0]
    with pytest.raises(UserError, match=r"init\.lmdb: a bank of other classes than the networks"):
        images_per_class([tiny_bank], ["top", "bottom", "middle"])


def test_accuracy_by_class_prints_the_rank_correlation(evaluated, tmp_path, monkeypatch):
    texts = []
    original = class_accuracy.Axes.scatter

    def noted(axes, x, y, **options):
        texts.append((x.tolist(), y.tolist(), options["label"]))
        return original(axes, x, y, **options)

    monkeypatch.setattr(class_accuracy.Axes, "scatter", noted)
    student = torch.stack([sure(0 if int(label) == 2 else int(label), 0.9) for label in evaluated.labels])
    student[1] = sure(0, 0.9)
    toy = changed(evaluated, student=student)
    plot_class_accuracy(toy, tmp_path / "classes.png")
    x, y, label = texts[1]
    assert x == [30, 20, 10]
    assert y == [100, 95, 0]
    assert label == "Student resnet8: rank correlation +1.00"
    for counts in (torch.tensor([5, 5, 5]), torch.zeros(3, dtype=torch.int64)):  # nothing to correlate with
        texts.clear()
        plot_class_accuracy(dataclasses.replace(toy, bank_images=counts), tmp_path / "even.png")
        assert texts[1][0] == [0, 1, 2]
        assert texts[1][2] == "Student resnet8"
    gone = dataclasses.replace(toy, labels=toy.labels.clamp(max=1))  # no test image of the third class
    texts.clear()
    plot_class_accuracy(gone, tmp_path / "gone.png")
    assert len(texts[1][0]) == 2


def test_features_are_what_the_last_layer_takes(evaluated):
    model, images = evaluated.models["teacher"], evaluated.images
    features = penultimate_features(model, images, evaluated.info, evaluated.runtime, batch_size=7)
    assert features.shape == (60, model.feature_dim)
    assert torch.allclose(model.classify(features), evaluated.logits["teacher"], atol=1e-4)


def test_a_map_keeps_the_classes_apart_and_is_always_the_same(evaluated):
    features = penultimate_features(evaluated.models["teacher"], evaluated.images, evaluated.info, evaluated.runtime)
    points = embed(features)
    assert points.shape == (60, 2)
    assert (points == embed(features)).all()
    distances = torch.cdist(torch.from_numpy(points), torch.from_numpy(points)).fill_diagonal_(math.inf)
    nearest = evaluated.labels[distances.argmin(1)]
    assert (nearest == evaluated.labels).float().mean() > 0.9


def test_few_images_and_models_without_features_are_mapped_too(evaluated, tmp_path, monkeypatch):
    few = dataclasses.replace(
        evaluated,
        images=evaluated.images[:3],
        labels=evaluated.labels[:3],
        logits={role: logits[:3] for role, logits in evaluated.logits.items()},
    )
    plot_feature_map(few, tmp_path / "few.png")  # too few for a map: an empty panel
    assert ink(tmp_path / "few.png") > 0

    def refuse(*_):
        raise feature_map.MissingFeatures("mynet", "penultimate features", "why")

    monkeypatch.setattr(feature_map, "penultimate_features", refuse)
    values, text = feature_map._values(evaluated, "teacher", torch.arange(60), 10)
    assert torch.equal(values, evaluated.logits["teacher"])
    assert text == "t-SNE of 60 test images, by their logits (it has no features)"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data, tiny_teacher, tiny_student, tiny_bank, reference):
    """A run's folder after the evaluation."""
    folder = tmp_path_factory.mktemp("run")
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_student.with_suffix(suffix), folder)
    evaluate(
        [folder / "student.safetensors"], tiny_data.test, EvaluateSettings(), reference, teacher=tiny_teacher, output=folder,
        banks=[tiny_bank],
    )  # fmt: skip
    return folder


def test_an_evaluation_draws_every_picture(run):
    assert {path.name for path in run.glob("*.png")} == set(PICTURES)
    for name in PICTURES:
        assert ink(run / name) > 0.01
        assert not {"Software", "Creation Time", "date"} & set(Image.open(run / name).info)


def test_drawing_again_gives_the_same_bytes(run, tiny_data, tiny_teacher, tiny_bank, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("*.png"))
    words = ["--teacher", tiny_teacher, "--test", tiny_data.test, "--bank", tiny_bank]
    result = CliRunner().invoke(app, ["plot", "evaluation", str(tmp_path / "run"), *map(str, words)])
    assert result.exit_code == 0, result.output
    assert [name for name in PICTURES if (run / name).read_bytes() != (tmp_path / "run" / name).read_bytes()] == []


def test_a_student_alone_has_every_picture(run, tiny_data, reference, tmp_path):
    evaluate([run / "student.safetensors"], tiny_data.test, EvaluateSettings(), reference, output=tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == set(PICTURES)
    assert Image.open(tmp_path / "reliability.png").size[0] < Image.open(run / "reliability.png").size[0]


def test_predictions_of_others_are_refused(run, tiny_data, tiny_teacher, reference, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    images, labels = read_split(tiny_data.test, "test")
    write_prepared(tmp_path / "turned.h5", tiny_data.info, {"test": (images, 2 - labels)}, {})
    with pytest.raises(UserError, match=r"predictions\.h5: .* of another test split; run `dfkd evaluate` again"):
        open_run(tmp_path / "run", tmp_path / "turned.h5", reference, tiny_teacher)
    card = json.loads((run / "student.json").read_text())
    (tmp_path / "run" / "student.json").write_text(json.dumps(card | {"lineage": {}}))
    with pytest.raises(UserError, match=r"predictions\.h5: of another teacher than"):
        open_run(tmp_path / "run", tiny_data.test, reference, run / "student.safetensors")


def test_reliability_takes_the_bins_of_the_settings(evaluated, tmp_path):
    for bins in (5, 15):
        plot_reliability(evaluated, tmp_path / f"{bins}.png", bins)
    assert (tmp_path / "5.png").read_bytes() != (tmp_path / "15.png").read_bytes()


def test_every_picture_has_a_caption_in_the_report():
    folder = Path(__file__).resolve().parents[2] / "workflow" / "report"
    assert all((folder / picture.replace(".png", ".rst")).is_file() for picture in PICTURES)
