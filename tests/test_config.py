import subprocess
import sys
from pathlib import Path

import pytest

from dfkd.config import Config, check_config, check_dataset, check_model, load_config, parse
from dfkd.errors import UserError
from dfkd.methods import DDASettings
from dfkd.settings import AugmentSettings, InitBankSettings, TeacherSettings

ROOT = Path(__file__).resolve().parents[1]


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_keys_name_the_nearest_known_one():
    assert "unknown key 'epocs'; the nearest known: epochs" in refusal(parse, TeacherSettings, {"epocs": 3}, "x")
    nested = {"bank_diffusion": {"strenth": 0.4}}
    assert "unknown key 'bank_diffusion.strenth'; the nearest known: strength" in refusal(parse, AugmentSettings, nested, "x")
    entry = {"datasets": {"toy": {"source": "folder:x", "chanels": 3}}}
    assert "the nearest known: channels" in refusal(check_config, entry, "config")


def test_ill_typed_values_are_named_with_what_was_given():
    text = refusal(parse, TeacherSettings, {"epochs": "zero"}, "config/config.yaml")
    assert text.startswith("config/config.yaml: epochs: ")
    assert "'zero'" in text
    assert "lr" in refusal(parse, TeacherSettings, {"lr": -1}, "x")
    assert "mean has 1 values for 3 channels" in refusal(check_config, {"datasets": {"a": {"source": "s", "mean": [0.5]}}}, "c")
    assert "seeds must differ" in refusal(check_config, {"seeds": [1, 1]}, "c")
    assert "expected a mapping" in refusal(parse, Config, [1], "c")


def test_a_fault_in_any_override_shows_before_anything_runs():
    assert "unknown key 'epoch'" in refusal(check_config, {"teacher": {"overrides": {"digits": {"epoch": 3}}}}, "config")
    assert "unknown method 'dad'; the nearest known: dfad, dda" in refusal(check_config, {"methods": {"dad": {}}}, "config")


def test_the_more_specific_override_wins():
    config = check_config(
        {
            "methods": {
                "dda": {
                    "defaults": {"epochs": 9, "kd_steps": 5},
                    "overrides": {
                        "digits": {"epochs": 8},
                        "digits_wrn162": {"epochs": 7, "lr": 0.2},
                        "digits_wrn162_wrn161": {"lr": 0.3},
                    },
                }
            }
        },
        "c",
    )
    chosen = config.stage("distill", "digits", "wrn162", "wrn161")
    assert (chosen.epochs, chosen.lr, chosen.kd_steps) == (7, 0.3, 5)
    assert config.stage("distill", "digits", "wrn402", "wrn161").epochs == 8
    assert config.stage("distill", "cifar10", "wrn162", "wrn161").epochs == 9


def test_defaults_are_the_published_recipes():
    teacher, bank, dda = TeacherSettings(), InitBankSettings(), DDASettings()
    assert (teacher.epochs, teacher.batch_size, teacher.lr, teacher.weight_decay) == (200, 256, 0.1, 1e-4)
    assert teacher.milestones == [120, 150, 180]
    assert bank.batches * bank.batch_size == 80_000
    assert bank.batches * bank.steps == 200_000
    assert dda.epochs * dda.synthesis_batch_size == 80_000
    assert dda.epochs * dda.g_steps == 40_000
    assert dda.epochs * dda.kd_steps == 400_000
    assert (dda.batch_size, dda.temperature, dda.feature, dda.csd) == (128, 20, 30, 10)


def test_the_shipped_configuration_gives_cifar10_the_published_recipe():
    config = load_config(ROOT / "config")
    for stage, settings in (("teacher", TeacherSettings()), ("init-bank", InitBankSettings()), ("distill", DDASettings())):
        shipped = config.stage(stage, "cifar10", "wrn402", "wrn161").model_dump(exclude={"compile"})
        assert shipped == settings.model_dump(exclude={"compile"})


def test_model_names():
    for name in ("wrn161", "wrn402", "wrn2810", "resnet8x4", "lenet5half"):
        assert check_model(name) == name
    assert "depth must be 6n+4" in refusal(check_model, "wrn152")
    assert "the nearest known: resnet18" in refusal(check_model, "resnet19")


def test_unknown_data_set_offers_names():
    config = check_config({"datasets": {"cifar10": {"source": "torchvision:CIFAR10"}}}, "c")
    assert "the nearest known: cifar10" in refusal(check_dataset, "cifar11", config)


def test_broken_yaml_is_a_sentence(tmp_path):
    assert "no such file" in refusal(load_config, tmp_path)
    (tmp_path / "config.yaml").write_text("seeds: [0\n")
    assert "not valid YAML" in refusal(load_config, tmp_path)
    (tmp_path / "config.yaml").write_text("- 1\n")
    assert "expected a mapping" in refusal(load_config, tmp_path)


def test_config_imports_no_torch():
    code = "import sys, dfkd.config, dfkd.errors, dfkd.datasets.info; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
