import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dfkd.config import STAGES, Config, load_config
from dfkd.methods import METHODS
from dfkd.schema import render
from dfkd.settings import DatasetSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(render())


def test_the_schema_in_the_workflow_is_the_one_of_the_typed_config():
    assert (ROOT / "workflow" / "schemas" / "config.schema.json").read_text(encoding="utf-8") == render()


def test_the_shipped_config_fits_both():
    config = load_config(ROOT / "config")
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    values["datasets"] = yaml.safe_load((ROOT / "config" / "datasets.yaml").read_text())
    values["methods"] = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "config" / "methods").glob("*.yaml")}
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(values, SCHEMA)
    assert config.seeds == [0]
    assert config.stage("augment", "digits", "wrn162").backend == "bank-diffusion"
    assert config.stage("augment", "cifar10", "wrn402").backend == "image-variations"


@pytest.mark.parametrize(
    "values",
    [
        {"epocs": 3},
        {"seeds": []},
        {"scatter": 0},
        {"teacher": {"defaults": {"epocs": 3}}},
        {"teacher": {"overrides": {"digits": {"epochs": 0}}}},
        {"augment": {"defaults": {"bank_diffusion": {"strength": 2}}}},
        {"methods": {"dda": {"overrides": {"digits": {"kd_step": 3}}}}},
        {"methods": {"dafl": {"defaults": {"kd": 3}}}},
        {"methods": {"dad": {}}},
        {"datasets": {"toy": {"source": "folder:x", "chanels": 1}}},
        {"imported": {"cifar10": "x.pth"}},
    ],
)
def test_the_schema_refuses_what_the_typed_config_refuses(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def settings_in(model):
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield field.annotation
            yield from settings_in(field.annotation)


def test_the_readme_explains_every_key():
    text = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([a-z_]+)`", text, re.MULTILINE))
    models = [Config, DatasetSettings, *STAGES.values(), *(method.settings for method in METHODS.values())]
    models += [inner for model in STAGES.values() for inner in settings_in(model)]
    known = {name for model in models for name in model.model_fields}
    assert known - explained == set()
    assert explained - known == set()
