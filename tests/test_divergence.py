import math

import pytest
import torch
from safetensors.torch import load_file

from dfkd.distillation.distill import distill
from dfkd.distillation.teacher import train_teacher
from dfkd.divergence import FILE, LIMIT, MOST, Divergence, Watch, attempt, check_terms, rollback_notes, rollbacks, slowed
from dfkd.history import read_history
from dfkd.methods import METHODS
from dfkd.models.weights import read_card
from dfkd.settings import AugmentSettings, TeacherSettings

CPU = torch.device("cpu")


def test_the_first_step_and_the_first_term_are_told():
    watch = Watch("distil", ["loss", "kd", "ce"], CPU, "lr or lr_g")
    watch.see(0, torch.tensor([1.0, -LIMIT, 0.0]))
    watch.check()
    watch.see(1, torch.tensor([1.0, 2.0, -math.inf]))
    watch.see(2, torch.tensor([math.nan, 2.0, 3.0]))
    with pytest.raises(
        Divergence, match=r"distil: ce is not finite, or beyond 1e\+08, at step 2; .* lower lr or lr_g,"
    ) as told:
        watch.check()
    assert (told.value.step, told.value.term) == (1, "ce")


@pytest.mark.parametrize("lost", [math.nan, math.inf, -2 * LIMIT])
def test_terms_of_a_synthesis(lost):
    check_terms("synthesis", 4, {"loss": LIMIT, "bn": -1.0})
    with pytest.raises(Divergence, match=r"synthesis: bn is not finite.* at step 5"):
        check_terms("synthesis", 4, {"loss": 1.0, "bn": lost})


def test_every_rate_is_lowered_and_nothing_else(tmp_path):
    settings = METHODS["fast"].settings()
    assert slowed(settings, tmp_path) is settings
    assert rollback_notes(tmp_path) == {}
    (tmp_path / FILE).write_text('[{"step": 7, "term": "loss"}, {"step": 9, "term": "bn"}]')
    changed = {
        name: (before, after)
        for name, before in settings.model_dump().items()
        if before != (after := slowed(settings, tmp_path).model_dump()[name])
    }
    assert changed == {
        name: (getattr(settings, name), getattr(settings, name) / 4) for name in ("lr", "min_lr", "lr_g", "lr_z")
    }
    augment = AugmentSettings()
    assert slowed(augment, tmp_path).bank_diffusion.lr == augment.bank_diffusion.lr / 4
    assert rollback_notes(tmp_path) == {"rollbacks": "step 7 (loss); step 9 (bn): rates × 0.25"}


def settings(**changes):
    """Weight decay 1: the weights grow without bound when the rate is above 2 (1 + momentum), and shrink below."""
    own = {"precision": "reference", "epochs": 12, "batch_size": 30, "momentum": 0.0, "nesterov": False, "weight_decay": 1.0}
    return TeacherSettings(**own | {"schedule": "multistep", "milestones": [100]} | changes)


def test_a_teacher_stops_with_its_last_good_state(tiny_data, reference, tmp_path):
    """The rate rises after the second epoch, whose state is the one that is kept."""
    chosen = settings(lr=0.01, gamma=800.0, milestones=[2])
    with pytest.raises(Divergence, match=r"teacher wrn101: loss is not finite, or beyond 1e\+08, at step \d+;") as told:
        attempt(
            lambda: train_teacher(tiny_data.data, "wrn101", chosen, tmp_path / "w.safetensors", tmp_path / "c", reference),
            tmp_path / "c",
            "stop",
        )
    state = torch.load(tmp_path / "c" / "state.pt", weights_only=True)["state"]
    assert 8 <= state["step"] <= told.value.step  # 4 steps an epoch
    assert state["step"] > told.value.step - 8
    assert all(bool(value.isfinite().all()) for value in state["model"].values())
    assert not (tmp_path / "w.safetensors").exists()
    assert rollbacks(tmp_path / "c") == []


def test_a_teacher_goes_on_at_a_rate_that_it_can_take(tiny_data, reference, tmp_path):
    chosen = settings(lr=8.0)
    card = attempt(
        lambda: train_teacher(tiny_data.data, "wrn101", chosen, tmp_path / "w.safetensors", tmp_path / "c", reference),
        tmp_path / "c",
        "rollback",
    )
    history = read_history(tmp_path / "history.csv")
    factor = history["lr"][-1] / 8
    assert factor in (0.5, 0.25, 0.125)
    assert card.notes["rollbacks"].endswith(f": rates × {factor:g}")
    assert card.settings["lr"] == 8.0
    assert len(history["loss"]) == 12
    assert all(math.isfinite(value) for value in history["loss"])
    assert all(bool(value.isfinite().all()) for value in load_file(tmp_path / "w.safetensors").values())
    assert not (tmp_path / "c").exists()


def test_it_is_not_tried_for_ever(tmp_path):
    tried = []

    def stage():
        tried.append((len(rollbacks(tmp_path)), (tmp_path / "state.pt").exists()))
        (tmp_path / "state.pt").touch()
        raise Divergence("stage", (3, 5, 5, 4, 9, 20)[len(tried) - 1], "loss")

    with pytest.raises(Divergence):
        attempt(stage, tmp_path, "rollback")
    assert MOST == 5
    # a state that is lost no later than before is given up: the stage begins anew
    assert tried == [(0, False), (1, True), (2, True), (3, False), (4, False), (5, True)]


def test_a_student_goes_on_and_says_so(tiny_data, tiny_teacher, tiny_bank, reference, tmp_path):
    changes = {"precision": "reference", "epochs": 6, "kd_steps": 6, "batch_size": 24, "momentum": 0.0, "weight_decay": 1.0}
    chosen = METHODS["cmi-nonadversarial"].settings(**changes, lr=6.0, schedule="multistep", milestones=[100])

    def stage():
        return distill(
            tiny_teacher, [tiny_bank], "wrn101", tiny_data.test, chosen, 0, tmp_path / "student.safetensors", tmp_path / "c",
            reference, "cmi-nonadversarial",
        )  # fmt: skip

    with pytest.raises(Divergence, match="distil: loss is not finite"):
        attempt(stage, tmp_path / "c", "stop")
    card = attempt(stage, tmp_path / "c", "rollback")
    assert card.notes["rollbacks"].startswith("step ")
    assert read_card(tmp_path / "student.safetensors").notes == card.notes
    assert all(math.isfinite(value) for value in read_history(tmp_path / "history.csv")["loss"])
