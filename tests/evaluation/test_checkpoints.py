"""`dfkd evaluate` on any checkpoints: with cards, trained elsewhere, several at once."""

import json

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.datasets.prepared import read_split
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.evaluation import metrics
from dfkd.evaluation.checkpoint_table import evaluation_table
from dfkd.evaluation.checkpoints import Architectures, short_names
from dfkd.evaluation.formats import EvaluationFile, read_metrics
from dfkd.evaluation.picture_names import EVALUATION_PICTURES
from dfkd.evaluation.predict import read_predictions
from dfkd.files import file_sha256
from dfkd.models import build_model, count_macs, count_parameters
from dfkd.models.weights import load_model


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def refusal(*words):
    result = run(*words)
    assert isinstance(result.exception, UserError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def table(*words):
    result = run(*words, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return EvaluationFile.model_validate_json(result.stdout[result.stdout.index("{") :])


@pytest.fixture
def foreign(tmp_path, tiny_teacher):
    """State dicts as other code writes them: the teacher's wrapped and renamed, a random one bare, one as safetensors."""
    teacher, _ = load_model(tiny_teacher)
    renamed = {f"module.{name.replace('fc', 'linear')}": values for name, values in teacher.state_dict().items()}
    torch.save({"state_dict": renamed, "epoch": 3}, tmp_path / "teacher.pth")
    torch.manual_seed(1)
    student = build_model("resnet8", 3, 1, 8)
    torch.save(student.state_dict(), tmp_path / "student.pt")
    safetensors.torch.save_file(student.state_dict(), tmp_path / "copy.safetensors")
    return tmp_path


def test_foreign_checkpoints_against_a_foreign_teacher(foreign, tiny_data):
    teacher, student = foreign / "teacher.pth", foreign / "student.pt"
    found = table(student, "--teacher", teacher, "--model", "resnet8", "--model", f"{teacher}:wrn101", "--test", tiny_data.test)
    assert (found.dataset, found.images, found.teacher.name, found.teacher.agree1) == ("bars", 60, "wrn101", None)
    (row,) = found.checkpoints
    images, labels = read_split(tiny_data.test, "test")
    model = build_model("resnet8", 3, 1, 8)
    model.load_state_dict(torch.load(student))
    network = build_model("wrn101", 3, 1, 8)
    network.load_state_dict({name[7:].replace("linear", "fc"): v for name, v in torch.load(teacher)["state_dict"].items()})
    with torch.no_grad():
        unit = normalise(to_unit(images), tiny_data.info)
        logits, expected = model.eval()(unit), network.eval()(unit)
    assert found.teacher.acc1 == metrics.accuracy(expected, labels) > 90
    assert row.acc1 == metrics.accuracy(logits, labels)
    assert row.agree1 == metrics.agreement(logits, expected)
    assert row.lp == pytest.approx(metrics.probability_loyalty(logits, expected), abs=1e-4)
    assert row.nll == pytest.approx(metrics.nll(logits, labels), rel=1e-4)
    assert (row.params, row.macs) == (count_parameters(model), count_macs(model, (1, 8, 8)))
    assert (row.checkpoint, row.sha256) == ("student", file_sha256(student))


def test_several_are_written_beside_each_other(foreign, tiny_data, tiny_teacher, tiny_student):
    out = foreign / "out"
    words = [tiny_student, foreign / "copy.safetensors", "--teacher", tiny_teacher, "--model", "resnet8"]
    found = table(*words, "--test", tiny_data.test, "-o", out, "--no-plots")
    assert [row.checkpoint for row in found.checkpoints] == ["student", "copy"]
    assert EvaluationFile.model_validate_json((out / "evaluation.json").read_text()) == found
    assert sorted(path.name for path in out.iterdir()) == ["copy", "evaluation.json", "student"]
    for row in found.checkpoints:
        file = read_metrics(out / row.checkpoint / "metrics.json")
        assert (file.last.acc1, file.last.agree1, file.teacher.acc1) == (row.acc1, row.agree1, found.teacher.acc1)
        logits = read_predictions(out / row.checkpoint / "predictions.h5").logits
        assert metrics.agreement(logits["student"], logits["teacher"]) == row.agree1
        assert json.loads((out / row.checkpoint / "metrics.cost.json").read_text())["teacher_queries"] == 60
    own, elsewhere = (read_metrics(out / name / "metrics.json") for name in ("student", "copy"))
    assert (own.method, own.data_free) == ("dda", True)
    assert (elsewhere.method, elsewhere.data_free, elsewhere.seed) == ("imported", False, 0)
    assert not list(out.rglob("*.png"))
    assert str(foreign) not in (out / "evaluation.json").read_text()


def test_one_is_written_into_the_folder_with_its_pictures(foreign, tiny_data):
    out = foreign / "out"
    table(foreign / "student.pt", "--model", "resnet8", "--test", tiny_data.test, "-o", out)
    wanted = {"metrics.json", "metrics.cost.json", "predictions.h5", *(f"{name}.png" for name in EVALUATION_PICTURES)}
    assert {path.name for path in out.iterdir()} == wanted
    assert read_metrics(out / "metrics.json").teacher is None


def test_without_output_nothing_is_written(foreign, tiny_data, tiny_teacher, monkeypatch):
    (foreign / "here").mkdir()
    monkeypatch.chdir(foreign / "here")
    result = run(foreign / "student.pt", "--teacher", tiny_teacher, "--model", "resnet8", "--test", tiny_data.test)
    assert result.exit_code == 0
    assert "On the 60 test images of bars" in result.stdout
    assert all(name in result.stdout for name in ("Agree@1 %", "L_p", "1 − √JSD", "MACs", "resnet8", "wrn101"))
    assert not list((foreign / "here").iterdir())


def test_the_data_set_is_that_of_the_card_or_the_named_one(foreign, tiny_data, tiny_teacher, monkeypatch):
    monkeypatch.chdir(foreign)
    (foreign / "data").mkdir()
    (foreign / "data" / "bars.test.h5").write_bytes(tiny_data.test.read_bytes())
    by_card = table(tiny_teacher)
    assert by_card.dataset == "bars"
    assert by_card.teacher is None
    assert table(tiny_teacher, "--dataset", "bars") == by_card
    text = "".join(column.header for column in evaluation_table(by_card).columns)
    assert "Agree@1" not in text


def test_mistakes_are_sentences(foreign, tiny_data, tiny_teacher, tiny_student, monkeypatch):
    test = ["--test", tiny_data.test]
    pth, pt = foreign / "teacher.pth", foreign / "student.pt"
    assert f"{pt}: has no card that names its architecture; add --model ARCH" in refusal(pt, *test)
    assert "no such file; give weights of this project" in refusal(foreign / "absent.pth", "--model", "resnet8", *test)
    assert "the tensors' names do not fit model 'wrn101'" in refusal(pt, "--model", "wrn101", *test)
    assert "unknown model 'resnet9'; the nearest known" in refusal(pt, "--model", "resnet9", *test)
    assert "resnet8 was given too" in refusal(pt, "--model", "resnet8", "--model", "resnet20", *test)
    assert f"is none of the checkpoints ({pt})" in refusal(pt, "--model", "other.pt:resnet8", *test)
    assert f"{pt} is given twice" in refusal(pt, pt, "--model", "resnet8", *test)
    assert "no card names the data set; add --dataset NAME" in refusal(pt, "--model", "resnet8")
    assert "give one of them" in refusal(pt, "--model", "resnet8", "--dataset", "bars", *test)
    assert "--best and --bank belong to one checkpoint" in refusal(pth, pt, "--best", pt, "--model", "resnet8", *test)
    assert "distilled from a teacher with SHA-256" in refusal(
        tiny_student, "--teacher", pth, "--model", "wrn101", *test
    )  # the same weights in another file: another artefact
    torch.save({"state_dict": {"a": print}}, foreign / "code.pth")
    assert "not loaded because they can run code" in refusal(foreign / "code.pth", "--model", "resnet8", *test)
    (foreign / "half.safetensors").write_bytes((foreign / "copy.safetensors").read_bytes()[:1000])
    assert "half.safetensors: not a safetensors file" in refusal(foreign / "half.safetensors", "--model", "resnet8", *test)
    out = foreign / "out"
    bad = ["--bank", foreign / "absent.lmdb", "-o", out]
    assert "absent.lmdb" in refusal(tiny_student, "--teacher", tiny_teacher, *bad, *test)
    assert not out.exists()
    monkeypatch.chdir(foreign)
    (foreign / "config").mkdir()
    (foreign / "config" / "config.yaml").write_text(
        "datasets: {stripes: {source: 'sklearn:digits', image_size: 8, channels: 1}}\n"
    )
    said = refusal(pt, "--model", "resnet8", "--dataset", "stripes")
    assert "data/stripes.test.h5: no such file; make it with `dfkd prepare stripes -o data/stripes.h5 --test-output" in said
    assert "unknown data set 'stripe'; the nearest known: stripes" in refusal(pt, "--model", "resnet8", "--dataset", "stripe")
    assert not list(foreign.rglob("*.png"))


def test_architectures_of_all_and_of_one(tmp_path):
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    found = Architectures.parse(["resnet8", f"{paths[1]}:wrn161"], paths)
    assert (found.every, found.named(paths[0]), found.named(paths[1])) == ("resnet8", None, "wrn161")


def test_names_tell_checkpoints_apart(tmp_path):
    def names(*paths):
        return short_names([tmp_path / path for path in paths])

    assert names("runs/dda/student.pth") == ["student"]
    assert names("a.pth", "b.pt") == ["a", "b"]
    runs = [f"runs/{method}/digits_wrn162_wrn161/seed{seed}/student.safetensors" for method, seed in (("dda", 0), ("kd", 0))]
    assert names(*runs) == ["dda", "kd"]
    assert names(runs[0], "runs/kd/digits_wrn162_wrn161/seed1/student.safetensors") == [
        "dda/digits_wrn162_wrn161/seed0",
        "kd/digits_wrn162_wrn161/seed1",
    ]
    scratch = "runs/scratch/digits_wrn161/seed0/student.safetensors"
    assert names(*runs, scratch, "elsewhere.pth") == [
        "dda/digits_wrn162_wrn161",
        "kd/digits_wrn162_wrn161",
        "scratch/digits_wrn161",
        "elsewhere",
    ]
    assert names("x/a.pth", "y/a.pth", "z/x.pth") == ["x/a", "y/a", "z/x"]  # two would be called x
    assert names("x/a.pth", "x/a.pt") == ["a.pth", "a.pt"]
    assert names("a.pth", "a/a.pth") == ["a", "a/a"]
