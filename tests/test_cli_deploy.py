"""`dfkd deploy`, `validate` and `export`, and what a result says of a student with blocks."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.config import parse
from dfkd.datasets.prepared import read_split
from dfkd.datasets.views import normalise, to_unit
from dfkd.distillation.distill import distill
from dfkd.distillation.teacher import train_teacher
from dfkd.errors import UserError
from dfkd.evaluation.evaluate import evaluate
from dfkd.evaluation.formats import read_metrics, read_result
from dfkd.evaluation.result import collect
from dfkd.evaluation.show import write_result_page
from dfkd.files import read_json
from dfkd.methods import KDSettings
from dfkd.models import build_model, count_macs, count_parameters
from dfkd.models import deploy as deployment
from dfkd.models.rep import Block
from dfkd.models.weights import WeightsCard, load_model, read_card, save_weights
from dfkd.settings import EvaluateSettings, TeacherSettings


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refusal(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, UserError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def folder(tiny_data, tiny_teacher, reference, tmp_path_factory):
    """A run of `kd` on the training images whose student has ACTDB blocks, deployed and evaluated."""
    folder = tmp_path_factory.mktemp("run")
    settings = KDSettings(precision="reference", epochs=2, kd_steps=12, batch_size=30, milestones=[], blocks="actdb")
    distill(
        tiny_teacher, [], "resnet8", tiny_data.test, settings, 0, folder / "student.safetensors", folder / "checkpoint",
        reference, "kd", tiny_data.data,
    )  # fmt: skip
    evaluate(
        [folder / "student.safetensors"], tiny_data.test, EvaluateSettings(), reference, teacher=tiny_teacher,
        best=folder / "best.safetensors", output=folder, pictures=False,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def deployed(folder):
    run("deploy", folder / "student.safetensors", "-o", folder / "deployed.safetensors")
    return folder / "deployed.safetensors"


def images_of(tiny_data):
    return to_unit(read_split(tiny_data.test, "test")[0])


def test_a_student_with_blocks_is_deployed(folder, deployed, tiny_data, monkeypatch):
    trained, card = load_model(folder / "student.safetensors")
    assert (card.blocks, card.deployed, card.settings["blocks"]) == ("actdb", False, "actdb")
    assert sum(isinstance(layer, Block) for layer in trained.modules()) == 7
    monkeypatch.setitem(sys.modules, "dfkd.models.rep", None)  # a folded network loads without the blocks' code
    twin, own = load_model(deployed)
    assert (own.blocks, own.deployed, own.params) == ("actdb", True, count_parameters(twin))
    assert own.lineage == {**card.lineage, "trained": card.sha256}
    assert (own.metrics, own.settings, own.seed, own.stage) == (card.metrics, card.settings, card.seed, card.stage)
    plain = build_model("resnet8", 3, 1, 8)
    assert list(dict(twin.named_modules())) == list(dict(plain.named_modules()))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in twin.modules())
    images = normalise(images_of(tiny_data), tiny_data.info)
    expected, found = trained(images), twin(images)
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= 1e-6


def test_deploy_says_what_it_did_and_the_same_twice(folder, deployed, tmp_path):
    said = run("deploy", folder / "student.safetensors", "-o", tmp_path / "again.safetensors")
    own, card = read_card(deployed), read_card(folder / "student.safetensors")
    assert f"resnet8, {card.params:,} → {own.params:,} parameters; largest difference of the logits" in said
    assert (tmp_path / "again.safetensors").read_bytes() == deployed.read_bytes()
    assert (tmp_path / "again.json").read_bytes() == deployed.with_suffix(".json").read_bytes()


def test_a_plain_network_is_deployed_too(tiny_teacher, tiny_data, tmp_path):
    run("deploy", tiny_teacher, "-o", tmp_path / "t.safetensors")
    teacher, card = load_model(tiny_teacher)
    folded, own = load_model(tmp_path / "t.safetensors")
    assert (own.blocks, own.deployed) == ("plain", True)
    assert own.params < card.params
    images = normalise(images_of(tiny_data), tiny_data.info)
    torch.testing.assert_close(folded(images), teacher(images), rtol=1e-5, atol=1e-5)


def bare(path, name, info, **changes):
    torch.manual_seed(0)
    card = WeightsCard(
        architecture=name, dataset=info, role="student", stage="distill kd", stage_version=1, settings={}, seed=0, **changes
    )
    save_weights(path, build_model(name, len(info.classes), info.channels, info.image_size), card)
    return path


def test_what_cannot_be_deployed_is_refused(folder, deployed, tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    assert "is deployed already; use it as it is" in refusal("deploy", deployed, "-o", out)
    large = tiny_data.info.model_copy(update={"image_size": 32})
    lenet = bare(tmp_path / "lenet.safetensors", "lenet5half", large)
    assert "has neither blocks nor a BatchNorm behind a convolution" in refusal("deploy", lenet, "-o", out)
    trained = folder / "student.safetensors"
    before = trained.read_bytes()
    assert "would replace the network that was trained" in refusal("deploy", trained, "-o", trained)
    assert "weights are kept in .safetensors" in refusal("deploy", trained, "-o", tmp_path / "out.pt")
    monkeypatch.setattr(deployment, "fold_error", lambda *_: 2e-3)
    assert "folded, its logits differ by 2.0e-03 of the largest (allowed: 1e-05)" in refusal("deploy", trained, "-o", out)
    monkeypatch.setattr(deployment, "fold_error", lambda *_: float("nan"))
    assert "logits differ by nan" in refusal("deploy", trained, "-o", out)
    assert trained.read_bytes() == before
    assert not out.exists()


def test_validate_measures_and_times(folder, deployed, tiny_data):
    found = json.loads(run("validate", deployed, "--test", tiny_data.test, "--json"))
    (row,) = found["evaluation"]["checkpoints"]
    metrics = read_metrics(folder / "metrics.json")
    assert (row["acc1"], row["acc5"]) == (metrics.last.acc1, metrics.last.acc5)
    model, _ = load_model(deployed)
    assert (row["params"], row["macs"]) == (count_parameters(model), count_macs(model, (1, 8, 8)))
    assert [one["batch"] for one in found["passes"]] == [1, 128]
    assert all(one["ms"] > 0 for one in found["passes"])
    said = run("validate", folder / "student.safetensors", "--test", tiny_data.test)
    assert f"blocks actdb; deployed: {row['params']:,} parameters, {row['macs']:,} MACs" in said
    assert "a forward pass over 1 image: " in said
    assert "a forward pass over 128 images: " in said
    assert f"{metrics.last.acc1:.2f}" in said


def test_validate_takes_networks_trained_elsewhere(tiny_data, tmp_path):
    torch.save(build_model("resnet8", 3, 1, 8).state_dict(), tmp_path / "s.pth")
    found = json.loads(run("validate", tmp_path / "s.pth", "--model", "resnet8", "--test", tiny_data.test, "--json"))
    assert found["evaluation"]["checkpoints"][0]["name"] == "resnet8"
    assert found["deployment"] is None
    assert "names its architecture; add --model ARCH" in refusal("validate", tmp_path / "s.pth", "--test", tiny_data.test)


def test_onnx_gives_the_logits_of_any_batch(folder, tiny_data, tmp_path):
    student = folder / "student.safetensors"
    said = run("export", student, "--format", "onnx", "--normalise", "-o", tmp_path / "s.onnx")
    assert "with its blocks folded" in said
    proto = onnx.load(tmp_path / "s.onnx")
    onnx.checker.check_model(proto)
    told = json.loads({entry.key: entry.value for entry in proto.metadata_props}["dfkd"])
    assert (told["classes"], told["range"], told["folded"]) == (["top", "middle", "bottom"], "[0, 1]", True)
    assert told["sha256"] == read_card(student).sha256
    content = (tmp_path / "s.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    model, _ = load_model(student)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = images_of(tiny_data)
    for count in (1, 7, 60):
        expected = model(normalise(images[:count], tiny_data.info)).numpy()
        found = session.run(None, {"images": images[:count].numpy()})[0]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("within", [False, True])
def test_torchscript_gives_the_logits_of_any_batch(within, folder, deployed, tiny_data, tmp_path):
    words = ["--normalise"] if within else []
    assert "folded" not in run("export", deployed, "--format", "torchscript", *words, "-o", tmp_path / "s.pt")
    extra = {"dfkd.json": ""}
    script = torch.jit.load(tmp_path / "s.pt", _extra_files=extra)
    assert json.loads(extra["dfkd.json"])["range"].startswith("[0, 1]" if within else "normalised")
    images, (model, _) = images_of(tiny_data), load_model(deployed)
    ready = normalise(images, tiny_data.info)
    for count in (1, 60):
        expected = model(ready[:count])
        found = script((images if within else ready)[:count])
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_cannot_be_exported_is_refused(deployed, tmp_path, monkeypatch):
    from dfkd.models import export

    out = tmp_path / "s.onnx"
    assert "--format onx: the nearest known: onnx" in refusal("export", deployed, "--format", "onx", "-o", out)
    weights = tmp_path / "s.safetensors"
    assert "is the name of weights" in refusal("export", deployed, "--format", "onnx", "-o", weights)
    wrong = lambda model, example, told: (b"", lambda images: model(images) * 1.001)  # noqa: E731
    monkeypatch.setitem(export.FORMS, "torchscript", wrong)
    found = refusal("export", deployed, "--format", "torchscript", "-o", out)
    assert "as torchscript, its logits differ by 1.0e-03 of the largest (allowed: 1e-05); nothing is written" in found
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = refusal("export", deployed, "--format", "onnx", "-o", out)
    assert found == "--format onnx needs onnx and onnxruntime: pip install onnx onnxscript onnxruntime."
    assert list(tmp_path.iterdir()) == []


def test_metrics_and_result_tell_both_forms(folder, deployed, tiny_data, reference, tmp_path):
    metrics = read_metrics(folder / "metrics.json")
    forms, (trained, _), (twin, _) = metrics.deployment, load_model(folder / "student.safetensors"), load_model(deployed)
    assert forms.blocks == "actdb"
    assert (forms.train_params, forms.deploy_params) == (count_parameters(trained), count_parameters(twin))
    assert (forms.train_macs, forms.deploy_macs) == tuple(count_macs(model, (1, 8, 8)) for model in (trained, twin))
    assert metrics.student.params == forms.train_params
    latency = read_json(folder / "metrics.cost.json")["latency"]
    assert [one["batch"] for one in latency] == [1, 128]
    second = json.loads((folder / "metrics.json").read_text()) | {"seed": 1}
    (tmp_path / "second.json").write_text(json.dumps(second))
    cost = read_json(folder / "metrics.cost.json")
    cost["latency"] = [one | {"train_ms": one["train_ms"] + 2.0} for one in latency]
    (tmp_path / "cost.json").write_text(json.dumps(cost))
    result = collect(
        "bars", "wrn101", "resnet8", "kd", [folder / "metrics.json", tmp_path / "second.json"],
        {"evaluate": [folder / "metrics.cost.json", tmp_path / "cost.json"]}, {}, None, "x", tmp_path / "result.json",
    )  # fmt: skip
    assert read_result(tmp_path / "result.json").student.deployment == result.student.deployment == forms
    for mean, one in zip(result.cost["evaluate"].latency, latency, strict=True):
        assert mean.train_ms == pytest.approx(one["train_ms"] + 1.0)
        assert mean.ratio == pytest.approx((one["train_ms"] + 1.0) / one["deploy_ms"])
    shown = run("show", tmp_path / "result.json")
    assert "In training (blocks: actdb) and deployed" in shown
    assert f"{forms.deploy_params:,}" in shown
    write_result_page(tmp_path / "result.json", tmp_path / "result.html")
    assert "blocks: actdb" in (tmp_path / "result.html").read_text()


def test_a_deployed_student_is_evaluated_as_the_trained_one(folder, deployed, tiny_data, tiny_teacher, reference):
    both = [folder / "student.safetensors", deployed]
    found = evaluate(both, tiny_data.test, EvaluateSettings(), reference, teacher=tiny_teacher).checkpoints
    assert found[0].acc1 == found[1].acc1
    assert found[0].agree1 == found[1].agree1
    assert found[1].nll == pytest.approx(found[0].nll, rel=1e-5)
    assert found[0].macs > 3 * found[1].macs


def test_a_student_from_scratch_can_have_blocks(tiny_data, reference, tmp_path):
    settings = TeacherSettings(precision="reference", epochs=1, batch_size=60, blocks="repvgg")
    train_teacher(tiny_data.data, "resnet8", settings, tmp_path / "s.safetensors", tmp_path / "checkpoint", reference)
    model, card = load_model(tmp_path / "s.safetensors")
    assert card.blocks == "repvgg"
    assert isinstance(model.conv1, Block)
    with pytest.raises(UserError, match="blocks: Input should be 'plain', 'actdb', 'repvgg', 'acb' or 'dbb', got 'ddb'"):
        parse(TeacherSettings, {"blocks": "ddb"}, "teacher settings")


def test_cards_of_older_versions_load(tiny_teacher, tmp_path):
    content = read_json(tiny_teacher.with_suffix(".json"))
    assert (content.pop("blocks"), content.pop("deployed")) == ("plain", False)
    (tmp_path / "t.json").write_text(json.dumps(content))
    (tmp_path / "t.safetensors").write_bytes(tiny_teacher.read_bytes())
    _, card = load_model(tmp_path / "t.safetensors")
    assert (card.blocks, card.deployed) == ("plain", False)
