import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from dfkd.config import STAGES, Config, load_config
from dfkd.methods import ALIASES, DEFAULT_METHOD, METHODS, MethodSettings, ObjectiveSettings
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


# Words of config/README.md for methods that have keys in common.
GROUPS = {
    "*with data*": [name for name, method in METHODS.items() if method.transfer],
    "*literature*": [name for name, method in METHODS.items() if issubclass(method.settings, ObjectiveSettings)],
}


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


def test_the_readme_says_which_methods_have_a_key():
    text = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    table = text.partition("### What methods add\n")[2].partition("\n## ")[0]
    methods = [name for name in METHODS if name not in ALIASES]
    said = {}
    for key, cell in re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", table, re.MULTILINE):
        words = cell.removeprefix("all but ").split(", ")
        names = [name for word in words for name in GROUPS.get(word, [word])]
        said[key] = {name for name in methods if (name in names) is not cell.startswith("all but ")}
        assert set(names) <= set(methods)
    own = {name: set(METHODS[name].settings.model_fields) - set(MethodSettings.model_fields) for name in methods}
    assert said == {key: {name for name in methods if key in own[name]} for key in set().union(*own.values())}


def test_every_method_has_a_file_and_a_page():
    files = {path.stem for path in (ROOT / "config" / "methods").glob("*.yaml")}
    assert files == set(METHODS) - set(ALIASES)
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "methods").glob("*.md"))
    assert [name for name in METHODS if f"results/{name}/" not in pages and name not in (*ALIASES, DEFAULT_METHOD)] == []
    assert [name for name in (*ALIASES, DEFAULT_METHOD) if f"`{name}`" not in pages and f"{name}.yaml" not in pages] == []
