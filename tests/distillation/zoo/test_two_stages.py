"""AB, FT and FSP: the published code's values, what the first stage trains and keeps, what the main stage makes of it."""

import csv
import json

import pytest
import torch
from golden import FA, FP, FQ, FS, FT, det
from stopping import stop_after
from torch import nn

from dfkd.distillation import distill as main
from dfkd.distillation import first_stage as first
from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo import first_stage as zoo
from dfkd.distillation.zoo import ft
from dfkd.distillation.zoo.ab import Boundaries, boundary_loss, connector
from dfkd.distillation.zoo.fsp import Flow, flow, flow_loss
from dfkd.distillation.zoo.ft import Paraphraser, Paraphrasing, factor_loss, translator
from dfkd.errors import UserError
from dfkd.methods import METHODS, ABSettings, FSPSettings, FTSettings
from dfkd.models import build_model
from dfkd.models.weights import load_model, load_state, read_card
from dfkd.progress import Stopped

SMALL = {
    "precision": "reference",
    "first_epochs": 3,
    "epochs": 2,
    "kd_steps": 4,
    "batch_size": 30,
    "milestones": [1],
    "first_lr": 0.02,
}


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_losses_are_those_of_the_published_code():
    assert boundary_loss(FA, FT).item() == pytest.approx(1.297868151983650, rel=1e-9)
    assert factor_loss(FS[2], FT[2]).item() == pytest.approx(0.0252402237922374, rel=1e-9)
    assert flow_loss(FP, FQ).item() == pytest.approx(0.427326802091229, rel=1e-9)


def test_a_neuron_beyond_the_margin_on_the_right_side_is_left_alone():
    student = torch.tensor([-2.0, -0.5, 0.5, 2.0, -2.0, 0.5]).reshape(1, 6, 1, 1).requires_grad_()
    teacher = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]).reshape(1, 6, 1, 1)
    boundary_loss([student], [teacher]).backward()
    wanted = [0, 2 * 0.5, 2 * 1.5, 0, 2 * -3, 2 * -0.5]
    assert student.grad.flatten().tolist() == pytest.approx([0.003 * value for value in wanted])


def test_the_flow_is_the_mean_product_of_two_maps():
    maps = [value[:2, :3] for value in (FP[0], FP[1])]  # 8×8 and 4×4
    for form, pool in (("code", nn.functional.avg_pool2d), ("paper", nn.functional.max_pool2d)):
        (matrix,) = flow(maps, form)
        pooled = pool(maps[0], 2)
        for b, d, c in ((0, 0, 0), (1, 2, 1)):
            assert matrix[b, d, c].item() == pytest.approx((maps[1][b, d] * pooled[b, c]).sum().item() / 16)
    paper = flow_loss(FP, FQ, "paper").item()
    wanted = sum(((a - b) ** 2).sum().item() for a, b in zip(flow(FP, "paper"), flow(FQ, "paper"), strict=True)) / 4
    assert paper == pytest.approx(wanted)


def test_the_paper_compares_factors_not_attention():
    ours, theirs = det((2, 3, 4, 4), 0.3, 0.2), det((2, 3, 4, 4), 0.5, 0.9)
    wanted = 0.0
    for a, b in zip(ours.flatten(1), theirs.flatten(1), strict=True):
        wanted += (a / a.square().sum().sqrt() - b / b.square().sum().sqrt()).abs().sum().item() / 2
    assert factor_loss(ours, theirs, "paper").item() == pytest.approx(wanted)
    assert factor_loss(ours, -ours).item() == 0
    assert factor_loss(ours, -ours, "paper").item() > 1


def test_the_heads_have_their_published_sizes():
    assert size(Paraphraser(64, 32)) == 129_312
    assert size(Paraphraser(128, 64)) == 516_672
    assert size(Paraphraser(256, 128)) == 2_065_536
    assert [size(translator(*pair)) for pair in ((64, 32), (128, 64), (64, 64))] == [64_896, 258_816, 111_168]


def test_only_maps_of_another_shape_need_a_connector():
    assert isinstance(connector((8, 4, 4), (8, 4, 4)), nn.Identity)
    for ours, theirs in (((8, 4, 4), (16, 4, 4)), ((8, 8, 8), (8, 4, 4))):
        made = connector(ours, theirs)
        assert [type(layer) for layer in made] == [nn.Conv2d, nn.BatchNorm2d]  # no ReLU: pre-activations have a sign
        assert made(torch.zeros(2, *ours)).shape[1:] == theirs


class Stages:
    """Both stages of a method on the tiny data, each in a folder of its name."""

    def __init__(self, teacher, data, runtime, folder):
        self.teacher, self.data, self.runtime, self.folder = teacher, data, runtime, folder

    def first(self, method, name, student="wrn101", **changes):
        output = self.folder / name / "first_stage.safetensors"
        settings = METHODS[method].settings(**(SMALL | changes))
        first.train_first_stage(
            self.teacher, [], student, settings, 0, output, self.folder / f"{name}.first", self.runtime, method, self.data.data
        )
        return output

    def main(self, method, name, begun, student="wrn101", seed=0, **changes):
        output = self.folder / name / "student.safetensors"
        known = METHODS[method].settings.model_fields
        settings = METHODS[method].settings(**{key: value for key, value in (SMALL | changes).items() if key in known})
        main.distill(
            self.teacher, [], student, self.data.test, settings, seed, output, self.folder / f"{name}.main", self.runtime,
            method, self.data.data, begun,
        )  # fmt: skip
        return output


@pytest.fixture
def stages(tiny_teacher, tiny_data, reference, tmp_path):
    return Stages(tiny_teacher, tiny_data, reference, tmp_path)


@pytest.mark.parametrize("method", ["kd-ab", "kd-ft", "kd-fsp"])
def test_stopped_and_started_again_both_stages_end_with_the_same_bytes(stages, monkeypatch, method):
    def bytes_of(output, *names):
        return [output.with_name(name).read_bytes() for name in (output.name, f"{output.stem}.json", *names)]

    whole = stages.first(method, "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, first, 13)  # asked twice a step, three times at an epoch's end: within the second epoch
        with pytest.raises(Stopped):
            stages.first(method, "broken")
    assert not (stages.folder / "broken" / "first_stage.safetensors").exists()
    assert (stages.folder / "broken.first" / "state.pt").exists()
    broken = stages.first(method, "broken")
    assert bytes_of(broken, "first_stage.history.csv") == bytes_of(whole, "first_stage.history.csv")
    assert not (stages.folder / "broken.first").exists()
    rows = list(csv.DictReader(whole.with_name("first_stage.history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert method == "kd-ft" or float(rows[-1]["loss"]) < float(rows[0]["loss"])
    cost = json.loads(whole.with_name("first_stage.cost.json").read_text())
    assert (cost["optimiser_steps"], cost["teacher_queries"]) == (12, 12 * 30)
    assert json.loads(broken.with_name("first_stage.cost.json").read_text())["optimiser_steps"] == 12

    student = stages.main(method, "whole", whole)
    with monkeypatch.context() as patch:
        stop_after(patch, main, 5)
        with pytest.raises(Stopped):
            stages.main(method, "broken", broken)
    assert bytes_of(stages.main(method, "broken", broken), "history.csv") == bytes_of(student, "history.csv")
    card = read_card(student)
    assert card.lineage["first stage"] == read_card(whole).sha256
    if method == "kd-ft":  # of 64 channels
        assert card.notes == {
            "transfer_set": "train",
            "heads": f"{size(translator(64, 32))} parameters trained with the student",
            "paraphraser": "129312 parameters",
        }


@pytest.mark.parametrize("method", ["kd-ab", "kd-fsp"])
def test_the_first_stage_trains_the_features_alone(stages, reference, method):
    output = stages.first(method, "run")
    trained, card = load_model(output)
    assert (card.role, card.architecture, card.stage) == ("student", "wrn101", f"first-stage {method}")
    first.seed_everything(0, "first-stage")
    drawn = build_model("wrn101", 3, 1, 8).state_dict()
    kept = {name for name, value in trained.state_dict().items() if torch.equal(value, drawn[name])}
    assert kept == {name for name in drawn if name.startswith(("bn1.", "fc."))}
    assert {value.item() for name, value in trained.state_dict().items() if name.endswith("tracked")} == {0, 12}  # once a step
    student = load_state(stages.main(method, "run", output, epochs=1, kd_steps=4, lr=1e-9))
    begun = load_state(output)
    for name, value in student.items():
        if not name.endswith(("running_mean", "running_var", "tracked")):
            assert torch.allclose(value, begun[name], atol=1e-6), name


def test_the_connectors_are_trained_and_left_behind(tiny_data, reference):
    torch.manual_seed(0)
    teacher, student = build_model("wrn102", 3, 1, 8).eval().requires_grad_(False), build_model("wrn101", 3, 1, 8)
    stage = Boundaries(teacher, student, tiny_data.info, ABSettings(**SMALL), reference)
    assert stage.notes == {
        "connectors": f"{sum(c * 2 * c + 3 * 2 * c for c in (16, 32, 64))} parameters trained in the first stage"
    }
    assert stage.connectors[0][0].kernel_size == (1, 1)
    assert stage.kept is student
    assert stage.connectors in stage.trained
    stage.loss(torch.randn(6, 1, 8, 8)).backward()
    assert all(parameter.grad is not None for parameter in stage.connectors.parameters())
    assert student.conv1.weight.grad.abs().sum() > 0
    assert student.fc.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_paraphraser_needs_no_student_and_stays_as_it_is(tiny_data, reference):
    torch.manual_seed(0)
    teacher, student = build_model("wrn102", 3, 1, 8).eval().requires_grad_(False), build_model("wrn101", 3, 1, 8)
    settings = FTSettings(**SMALL, factor_rate=0.25)
    runs = []
    student.register_forward_hook(lambda *_: runs.append(1))
    stage = Paraphrasing(teacher, student, tiny_data.info, settings, reference)
    images, optimiser, losses = torch.randn(6, 1, 8, 8), torch.optim.Adam(stage.kept.parameters(), 3e-3), []
    for _ in range(12):
        losses.append(stage.loss(images))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    assert runs == []
    assert size(stage.kept) == size(Paraphraser(128, 32))
    objective = ft.FT(teacher, student, tiny_data.info, settings, reference)
    objective.start_from(stage.kept.state_dict())
    assert "paraphraser" not in objective.parts()  # it is the artefact's
    assert objective.size == size(translator(64, 32))
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    losses = objective.losses(Batch(images, labels))
    teacher_maps = objective.observed["teacher"](images).maps[-1]
    student_maps = objective.observed["student"](images).maps[-1]
    ours, theirs = objective.heads["translator"](student_maps), stage.kept.eval().encoder(teacher_maps)
    assert losses["ft"].item() == pytest.approx(factor_loss(ours, theirs).item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["ce"].item() + 200 * losses["ft"].item(), rel=1e-5)
    losses["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.paraphraser.parameters())


def test_fsp_and_unequal_channels_are_refused(tiny_data, reference, stages):
    teacher, student = build_model("wrn101", 3, 1, 8).eval(), build_model("wrn102", 3, 1, 8)
    with pytest.raises(UserError, match="student has 16, 32, 64, 128 and the teacher 16, 16, 32, 64: choose another"):
        Flow(teacher, student, tiny_data.info, FSPSettings(**SMALL), reference)
    with pytest.raises(UserError, match="FSP: needs equal channels"):
        stages.first("kd-fsp", "run", student="wrn102")
    assert not (stages.folder / "run").exists()


@pytest.fixture(scope="module")
def begun(tiny_teacher, tiny_data, reference, tmp_path_factory):
    return Stages(tiny_teacher, tiny_data, reference, tmp_path_factory.mktemp("begun")).first("kd-ab", "run", kd_steps=1)


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        ("kd-ab", {"first_lr": 0.5}, "has first_lr 0.02, not 0.5; make the first stage"),
        ("kd-ab", {"seed": 1}, "has seed 0, not 1"),
        ("kd-ab", {"student": "wrn102"}, "is of student wrn101"),
        ("kd-fsp", {}, "is of stage 'first-stage kd-ab'"),
        ("kd-ab", {"begun": None}, "starts from its first stage; make that by `dfkd first-stage`"),
        ("kd-at", {}, "has no first stage; leave --first-stage away"),
    ],
)
def test_a_first_stage_of_something_else_is_refused(stages, begun, method, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        stages.main(method, "x", **({"begun": begun, "kd_steps": 1} | changes))
    assert not (stages.folder / "x").exists()


def test_what_does_not_count_in_the_first_stage_does_not_change_it(stages):
    settings = ABSettings(**SMALL)
    other = ABSettings(**(SMALL | {"epochs": 9, "lr": 0.5, "kd": 1.0, "milestones": [2], "temperature": 2.0}))
    assert other.first_stage() == settings.first_stage()
    assert ABSettings().first_stage()["first_lr"] == ABSettings().lr == 0.05
    assert FTSettings().first_stage()["first_lr"] == 0.01
    assert FTSettings(form="paper").first_stage() == FTSettings().first_stage()
    assert FSPSettings(form="paper").first_stage() != FSPSettings().first_stage()
    with pytest.raises(UserError, match="method kd-at: has no first stage; distil at once"):
        first.train_first_stage(
            stages.teacher, [], "wrn101", settings, 0, stages.folder / "f.safetensors", stages.folder / "c", stages.runtime,
            "kd-at", stages.data.data,
        )  # fmt: skip


def test_a_paraphraser_is_no_classifier(stages):
    output = stages.first("kd-ft", "run", first_epochs=1, kd_steps=1)
    assert read_card(output).architecture == "paraphraser of wrn101"
    with pytest.raises(UserError, match="weights of a paraphraser; give those of a teacher or a student"):
        load_model(output)


def test_a_network_that_names_no_trunk_is_trained_whole():
    assert zoo.trunk(model := nn.Linear(2, 2)) == [model]
    wrn = build_model("wrn101", 3, 1, 8)
    assert zoo.trunk(wrn) == [wrn.conv1, wrn.block1, wrn.block2, wrn.block3]
