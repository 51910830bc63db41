"""How `config/` resolves to the settings of one job, and what is refused on the way. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from dfkd.errors import UserError, nearest
from dfkd.methods import ALIASES, DEFAULT_METHOD, METHODS, MethodSettings, transfer_set
from dfkd.plugins import load_plugins, named, note
from dfkd.settings import (
    AugmentSettings,
    Count,
    DatasetSettings,
    EvaluateSettings,
    InitBankSettings,
    OnDivergencePolicy,
    Settings,
    StageSettings,
    TeacherSettings,
)

# Raised when a stage's results change for equal settings: a param of its rule, part of its checkpoints' fingerprint.
STAGE_VERSIONS = {"prepare": 1, "teacher": 1, "init-bank": 1, "augment": 1, "first-stage": 1, "distill": 2, "evaluate": 2}

# Models by name → "module:builder", called with (classes, channels, image_size). `wrn{depth}{width}` comes on top.
MODELS: dict[str, str] = {
    "resnet18": "dfkd.models.resnet:resnet18",
    "resnet34": "dfkd.models.resnet:resnet34",
    "resnet50": "dfkd.models.resnet:resnet50",
    "vgg8": "dfkd.models.vgg:vgg8",
    "vgg11": "dfkd.models.vgg:vgg11",
    "vgg13": "dfkd.models.vgg:vgg13",
    "vgg16": "dfkd.models.vgg:vgg16",
    "vgg19": "dfkd.models.vgg:vgg19",
    "mobilenetv2": "dfkd.models.mobilenetv2:mobilenetv2",
    "shufflenetv1": "dfkd.models.shufflenetv1:shufflenetv1",
    "shufflenetv2": "dfkd.models.shufflenetv2:shufflenetv2",
    "resnet8": "dfkd.models.resnet_cifar:resnet8",
    "resnet14": "dfkd.models.resnet_cifar:resnet14",
    "resnet20": "dfkd.models.resnet_cifar:resnet20",
    "resnet32": "dfkd.models.resnet_cifar:resnet32",
    "resnet44": "dfkd.models.resnet_cifar:resnet44",
    "resnet56": "dfkd.models.resnet_cifar:resnet56",
    "resnet110": "dfkd.models.resnet_cifar:resnet110",
    "resnet8x4": "dfkd.models.resnet_cifar:resnet8x4",
    "resnet32x4": "dfkd.models.resnet_cifar:resnet32x4",
    "lenet5": "dfkd.models.lenet:lenet5",
    "lenet5half": "dfkd.models.lenet:lenet5half",
}
WRN = re.compile(r"wrn(?P<depth>\d{2})(?P<width>\d{1,2})")

# Kinds of `source: KIND:VALUE` → "module:function", called with (value, the data set's settings, folder for downloads).
SOURCES: dict[str, str] = {
    "torchvision": "dfkd.datasets.sources:torchvision_source",
    "sklearn": "dfkd.datasets.sources:sklearn_source",
    "folder": "dfkd.datasets.folder:folder_source",
    "hdf5": "dfkd.datasets.sources:hdf5_source",
    "packed": "dfkd.packed.source:packed_source",
}

# `distill` comes on top: its settings are the method's.
STAGES: dict[str, type[StageSettings]] = {
    "teacher": TeacherSettings,
    "init-bank": InitBankSettings,
    "augment": AugmentSettings,
    "evaluate": EvaluateSettings,
}
TEACHER_STAGES = ("teacher", "init-bank", "augment")  # no student in their jobs


class Section(Settings):
    """A stage's settings in the config: `defaults`, and `overrides` by data set, teacher target or pair."""

    defaults: dict[str, Any] = Field({})
    overrides: dict[str, dict[str, Any]] = Field(
        {}, description="keyed by `dataset`, `dataset_teacher` or `dataset_teacher_student`; the more specific wins"
    )


class Config(Settings):
    """config/config.yaml with config/datasets.yaml as `datasets` and config/methods/*.yaml as `methods`."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="one student per seed")
    compare: list[str] = Field(
        default_factory=lambda: [name for name, method in METHODS.items() if name not in ALIASES and not method.transfer],
        min_length=1,
        description="the methods of results/compare/DATASET_TEACHER_STUDENT.html; without it, all that make their images",
    )
    comparisons: dict[Annotated[str, Field(pattern=r"^[a-z0-9]+$")], Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict,
        validate_default=True,
        description="further lists of methods, for results/compare/NAME_DATASET_TEACHER_STUDENT.html; without a list of that "
        "name, `kd` is all that distil on a transfer set and take any pair",
    )
    on_divergence: OnDivergencePolicy = Field(
        "stop",
        description="when a loss is lost: `stop`, or `rollback`, which goes on from the last good state at half the rate",
    )
    scatter: Count = Field(1, description="parallel shards of the init bank; any number gives the same bank")
    teacher: Section = Section()
    init_bank: Section = Section()
    augment: Section = Section()
    evaluate: Section = Section()
    imported: dict[Annotated[str, Field(pattern=r"^[a-z0-9]+_[a-z0-9]+$")], str] = Field(
        {}, description="`dataset_model: FILE.pth`: a checkpoint of your own that is imported instead of trained"
    )
    plugins: list[str] = Field(
        [], description="modules, or paths of .py files, that register methods, models and sources of your own"
    )
    datasets: dict[Annotated[str, Field(pattern=r"^[a-z0-9]+$")], DatasetSettings] = Field({})
    methods: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], Section] = Field({})

    @field_validator("comparisons")
    @classmethod
    def _with_kd(cls, comparisons: dict[str, list[str]]) -> dict[str, list[str]]:
        methods = {name: method for name, method in METHODS.items() if name not in ALIASES}
        return {"kd": [name for name, own in methods.items() if own.transfer and not own.equal_channels], **comparisons}

    @model_validator(mode="after")
    def _unique(self) -> Config:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ from each other")
        for name, methods in {"compare": self.compare, **self.comparisons}.items():
            if len(set(methods)) != len(methods):
                raise ValueError(f"the methods of {name} must differ from each other")
        for name in self.comparisons:
            if name in self.datasets:
                raise ValueError(f"comparisons: '{name}' is a data set; give the list another name")
        return self

    def compared(self, comparison: str = "") -> list[str]:
        """The methods of a list of `comparisons`; those of `compare` without a name."""
        return self.comparisons[comparison] if comparison else self.compare

    def stage(
        self, stage: str, dataset: str, teacher: str = "", student: str = "", method: str = DEFAULT_METHOD
    ) -> StageSettings:
        """The settings of one job: defaults, then the overrides that fit, from the general to the specific."""
        if stage == "distill":
            section = self.methods.get(ALIASES.get(method, method), Section())
        else:
            section = getattr(self, stage.replace("-", "_"))
        values: dict[str, Any] = merge({}, section.defaults)
        keys = [
            "_".join(part for part in parts if part) for parts in ((dataset,), (dataset, teacher), (dataset, teacher, student))
        ]
        for key in dict.fromkeys(keys):
            values = merge(values, section.overrides.get(key, {}))
        where = f"{method if stage == 'distill' else stage} settings" + (f" of {keys[-1]}" if keys[-1] else "")
        return parse(settings_of(stage, method), values, where)  # type: ignore[return-value]


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mappings within mappings included."""
    merged = dict(base)
    for key, value in change.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse(model: type[Settings], values: Any, where: str) -> Settings:
    """Validate `values`; the first fault is a `UserError` that names the key and, for an unknown one, its nearest relatives."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected a mapping of keys to values, got {type(values).__name__}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        path = [str(part) for part in fault["loc"]]
        if fault["type"] == "extra_forbidden":
            known = _keys_at(model, path[:-1])
            raise UserError(f"{where}: unknown key '{'.'.join(path)}'; {nearest(path[-1], known)}.") from None
        reason = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] == "missing" else f", got {fault['input']!r}" if path else ""
        raise UserError(f"{where}: {'.'.join(path) or 'settings'}: {reason}{given}.") from None


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The known keys of the settings that `path` leads to."""
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        current = field.annotation if field else _value_type(current)
    arguments = [current, *getattr(current, "__args__", ())]
    return next((list(item.model_fields) for item in arguments if hasattr(item, "model_fields")), [])


def _value_type(annotation: Any) -> Any:
    return next((item for item in reversed(getattr(annotation, "__args__", ())) if hasattr(item, "model_fields")), annotation)


def read_yaml(path: str | Path) -> Any:
    """Read YAML. A missing or broken file is a `UserError`."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}).") from None


def load_config(folder: str | Path = "config", changes: Mapping[str, Any] | None = None) -> Config:
    """Read `config.yaml`, `datasets.yaml` and `methods/*.yaml` of a folder, with `changes` laid over them.

    Plugins are loaded. Every section is resolved once, so that a fault in any of them shows before anything runs.
    """
    folder = Path(folder)
    content = read_yaml(folder / "config.yaml")
    if not isinstance(content, Mapping):
        raise UserError(f"{folder / 'config.yaml'}: expected a mapping of keys to values.")
    datasets = folder / "datasets.yaml"
    values = merge({"datasets": read_yaml(datasets) if datasets.exists() else {}}, content)
    values = merge({"methods": {path.stem: read_yaml(path) for path in sorted(folder.glob("methods/*.yaml"))}}, values)
    values = merge(values, changes or {})
    load_plugins(named(values))  # before the names in it are checked
    return check_config(values, str(folder))


def check_config(values: Any, where: str) -> Config:
    """Validate a whole config, the overrides of every section included."""
    config: Config = parse(Config, values, where)  # type: ignore[assignment]
    for method in config.methods:
        try:
            check_method(method)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    for name, methods in {"compare": config.compare, **config.comparisons}.items():
        for method in methods:
            try:
                check_method(method)
            except UserError as error:
                raise UserError(f"{where}: {name}: {error}") from None
    for pair in config.imported:
        _check_target(pair, 2, config, f"{where}: imported")
    for stage in (*STAGES, "distill"):
        sections = config.methods if stage == "distill" else {DEFAULT_METHOD: getattr(config, stage.replace("-", "_"))}
        for method, section in sections.items():
            for key in section.overrides:
                _check_target(key, 2 if stage in TEACHER_STAGES else 3, config, f"{where}: overrides of {stage}")
            for key in ("", *section.overrides):
                dataset, teacher, student = (*key.split("_"), "", "")[:3]
                _check_transfer_set(method, config.stage(stage, dataset, teacher, student, method), config, where)
    return config


def _check_transfer_set(method: str, settings: StageSettings, config: Config, where: str) -> None:
    """Refuse a transfer set that is a data set nobody knows."""
    kind, value = transfer_set(method, settings) if isinstance(settings, MethodSettings) else ("", "")
    if kind == "dataset":
        try:
            check_dataset(value, config)
        except UserError as error:
            raise UserError(f"{where}: {method}: transfer_set: {error}") from None


def _check_target(key: str, parts: int, config: Config, where: str) -> None:
    """Refuse a `dataset_teacher_student` key that no job can have: it would be ignored in silence."""
    dataset, *models = key.split("_")
    if len(models) >= parts:
        form = "_".join(("dataset", "teacher", "student")[:parts])
        raise UserError(f"{where}: '{key}' has more parts than {form}; write models without '_', such as wrn402.")
    try:
        if config.datasets:
            check_dataset(dataset, config)
        for model in models:
            check_model(model)
    except UserError as error:
        raise UserError(f"{where}: '{key}': {error}") from None


def check_model(name: str) -> str:
    """`name` if the package can build it; otherwise a `UserError` with the nearest known names."""
    match = WRN.fullmatch(name)
    if match:
        if (int(match["depth"]) - 4) % 6 == 0 and int(match["depth"]) >= 10 and int(match["width"]) >= 1:
            return name
        raise UserError(f"model '{name}': a WRN's depth must be 6n+4 (10, 16, 22, 28, 34, 40, …) and its width at least 1.")
    if name not in MODELS:
        raise UserError(f"unknown model '{name}'; {nearest(name, (*MODELS, 'wrn161', 'wrn162', 'wrn401', 'wrn402'))}.")
    return name


def register_model(name: str, builder: str) -> None:
    """Add a model of your own: `builder` is "module:function", called with (classes, channels, image_size) for an nn.Module.

    Raises:
        UserError: the name is taken or not of the form [a-z0-9]+, or the builder is ill-formed.
    """
    note("model", name, "[a-z0-9]+", [name] if WRN.fullmatch(str(name)) else MODELS, builder)
    MODELS[name] = builder


def register_source(kind: str, source: str) -> None:
    """Add a source of images of your own, for `source: KIND:VALUE`. `source` is "module:function", called with (value,
    the data set's settings, folder for downloads) for a `dfkd.datasets.arrays.SourceData`.

    Raises:
        UserError: the kind is taken or not of the form [a-z0-9]+, or the source is ill-formed.
    """
    note("source", kind, "[a-z0-9]+", SOURCES, source)
    SOURCES[kind] = source


def check_method(name: str) -> str:
    """`name` if there is such a method; otherwise a `UserError` with the nearest known names."""
    if name not in METHODS:
        raise UserError(f"unknown method '{name}'; {nearest(name, METHODS)}.")
    return name


def settings_of(stage: str, method: str = DEFAULT_METHOD) -> type[StageSettings]:
    """The settings' type of a stage; `distill` has those of its method."""
    return METHODS[check_method(method)].settings if stage == "distill" else STAGES[stage]


def check_dataset(name: str, config: Config) -> DatasetSettings:
    """The data set's entry; an unknown name is a `UserError` with the nearest known names."""
    if name not in config.datasets:
        raise UserError(f"unknown data set '{name}'; {nearest(name, config.datasets)}. Add it to config/datasets.yaml.")
    return config.datasets[name]
