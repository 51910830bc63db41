"""Typed, validated settings of every stage, and how `config/` resolves to them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dfkd.errors import UserError, nearest

# Raised when a stage's results change for equal settings: a param of its rule, part of its checkpoints' fingerprint.
STAGE_VERSIONS = {"prepare": 1, "teacher": 1, "init-bank": 1, "augment": 1, "distill": 1, "evaluate": 1}

# Models that the package builds by name; `wrn{depth}{width}` comes on top. dfkd/models keeps the builders, a test the equality.
MODEL_NAMES = (
    "resnet18", "resnet34", "resnet50", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenetv2",
    "resnet8", "resnet20", "resnet32", "resnet56", "resnet110", "resnet8x4", "resnet32x4", "lenet5", "lenet5half",
)  # fmt: skip
WRN = re.compile(r"wrn(?P<depth>\d{2})(?P<width>\d{1,2})")
# The teacher's banks that a method starts from: `init`, `variations`. They become inputs of its distil rule.
METHOD_BANKS: dict[str, tuple[str, ...]] = {"dda": ("init", "variations")}
METHOD_NAMES = tuple(METHOD_BANKS)
DEFAULT_METHOD = "dda"

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StageSettings(Settings):
    """What every computing stage can set."""

    precision: Literal["fast", "reference"] = Field(
        "fast",
        description="`fast`: bf16 where the hardware multiplies it, channels_last; `reference`: fp32, eager, deterministic",
    )
    compile: bool = Field(False, description="torch.compile the inner loop where a compiler is found; pays for long runs")


class DatasetSettings(Settings):
    """One entry of config/datasets.yaml."""

    source: str = Field(description="`torchvision:NAME`, `sklearn:digits`, `folder:PATH` or `hdf5:PATH`")
    image_size: int = Field(32, ge=4, le=1024, description="height and width in pixels; images are resized with antialiasing")
    channels: Literal[1, 3] = Field(3, description="1 (grey) or 3 (RGB)")
    classes: list[str] | None = Field(None, description="class names in label order; from the source when absent")
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; from the training split when absent")
    std: list[float] | None = Field(None, description="per channel, likewise")
    crop_padding: int = Field(4, ge=0, description="zero padding of the random crop in training; 0 switches it off")
    flip: bool = Field(True, description="random horizontal flips in training")
    test_fraction: float | None = Field(None, gt=0, lt=1, description="for a source without a test split: stratified share")
    split_seed: int = Field(0, ge=0, description="seed of that split")
    skip_unreadable: bool = Field(False, description="image folder: leave out unreadable files instead of stopping")

    @model_validator(mode="after")
    def _lengths(self) -> DatasetSettings:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{key} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class TeacherSettings(StageSettings):
    """The CIFAR recipe of the field's public code: SGD, MultiStep, crop and flip."""

    seed: int = Field(0, ge=0)
    epochs: Count = 200
    batch_size: Count = 256
    lr: Rate = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: Weight = 1e-4
    milestones: list[int] = Field([120, 150, 180], description="epochs after which the rate is multiplied by gamma")
    gamma: Rate = 0.1
    schedule: Literal["multistep", "cosine"] = "multistep"
    nesterov: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class InitBankSettings(StageSettings):
    """Generator inversion (CSD/DDA bank initialisation with `csd: 0`)."""

    seed: int = Field(0, ge=0)
    batches: Count = Field(400, description="generators trained one after the other; images = batches × batch_size")
    batch_size: Count = 200
    steps: Count = Field(500, description="optimiser steps per batch")
    lr: Rate = 1e-3
    latent_size: Count = 256
    generator: Literal["small", "large"] = "small"
    width: Count = Field(64, description="maps of the generator's last stage; 64 in all of the field's code")
    bn: Weight = Field(1.0, description="weight of the BN-statistics loss")
    oh: Weight = Field(1.0, description="weight of the one-hot loss")


class ImageVariationsSettings(Settings):
    """diffusers' StableDiffusionImageVariationPipeline."""

    model: str = Field("lambdalabs/sd-image-variations-diffusers", description="hub id or local folder")
    revision: str = "v2.0"
    scheduler: Literal["dpm++", "unipc", "ddim", "pndm", "euler", "lcm"] = "dpm++"
    steps: Count = 20
    guidance: float = Field(3.0, ge=0, allow_inf_nan=False)
    height: int = Field(256, ge=8, multiple_of=8, description="pixels of the generated square image before downsampling")
    decoder: Literal["taesd", "full"] = Field("taesd", description="TAESD (small) or the model's own VAE decoder")
    taesd: str = Field("madebyollin/taesd", description="hub id or local folder of the small decoder")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on a GPU, else float32")
    safety_checker: bool = Field(False, description="run the model's own checker; an image it blacks out stops the stage")
    batch_size: Count = 32


class BankDiffusionSettings(Settings):
    """A small class-conditional UNet trained on the init bank; variations by SDEdit."""

    strength: float = Field(0.5, gt=0, le=1, description="share of the noising trajectory that is undone and redone")
    channels: list[Annotated[int, Field(ge=4, multiple_of=4)]] = Field(
        [64, 128, 128], min_length=1, description="UNet widths from the finest level down, multiples of 4"
    )
    layers_per_block: Count = 1
    patch: Count = Field(1, description="side of the pixel squares folded into channels before the UNet; 2 quarters its work")
    train_steps: Count = 20000
    batch_size: Count = 128
    lr: Rate = 2e-4
    ema: float = Field(0.999, ge=0, lt=1)
    sampling_steps: int = Field(
        50, ge=1, le=1000, description="DDIM steps of the full trajectory; strength × this many are run"
    )
    sampling_batch_size: Count = 200


class AugmentSettings(StageSettings):
    """Diffusion variations of the init bank and the fidelity filter (DDA)."""

    seed: int = Field(0, ge=0)
    backend: Literal["image-variations", "bank-diffusion", "none"] = "image-variations"
    variations: int = Field(1, ge=1, le=256, description="variations per chosen parent")
    share: float = Field(1.0, gt=0, le=1, description="share of the bank's images that are varied, drawn by the seed")
    threshold: float = Field(0.7, ge=-1, le=1, description="a variation is kept iff cosine(variation, parent) ≥ threshold")
    embedding: Literal["teacher", "clip"] = Field(
        "teacher", description="where the cosine is taken: penultimate features or CLIP"
    )
    clip: str = Field("openai/clip-vit-base-patch32", description="hub id or local folder of the CLIP image encoder")
    image_variations: ImageVariationsSettings = ImageVariationsSettings()
    bank_diffusion: BankDiffusionSettings = BankDiffusionSettings()


class DistillSettings(StageSettings):
    """DDA's main stage (CSD with 200 epochs and synthesis batches of 400)."""

    epochs: Count = 200
    kd_steps: Count = Field(2000, description="student steps per epoch")
    batch_size: Count = 128
    lr: Rate = Field(0.1, description="student and aligner, cosine to 0 over the epochs")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: Weight = 1e-4
    temperature: Rate = 20.0
    kd: Weight = Field(1.0, description="weight of KL(teacher || student)")
    ce: Weight = Field(1.0, description="weight of the cross-entropy with the bank's labels")
    feature: Weight = Field(30.0, description="weight of the feature MSE")
    head_lr: Rate = Field(0.1, description="rate of the joint class × rotation head, constant")
    synthesis_batch_size: Count = 400
    g_steps: Count = Field(200, description="generator steps per epoch")
    lr_g: Rate = 1e-3
    latent_size: Count = 256
    generator: Literal["small", "large"] = "small"
    width: Count = Field(64, description="maps of the generator's last stage; 64 in all of the field's code")
    bn: Weight = 1.0
    oh: Weight = 1.0
    csd: Weight = Field(10.0, description="weight of − CE of the joint class × rotation head")


class EvaluateSettings(StageSettings):
    """Metrics of a student against its teacher on the test split."""

    precision: Literal["fast", "reference"] = Field(
        "reference",
        description="`reference`: fp32, so that no figure depends on the hardware's bf16; `fast`: as in the other stages",
    )
    batch_size: Count = 500
    ece_bins: Count = Field(15, description="equal-width confidence bins of the expected calibration error")


STAGES: dict[str, type[StageSettings]] = {
    "teacher": TeacherSettings,
    "init-bank": InitBankSettings,
    "augment": AugmentSettings,
    "distill": DistillSettings,
    "evaluate": EvaluateSettings,
}
TEACHER_STAGES = ("teacher", "init-bank", "augment")  # no student in their jobs


class Section(Settings):
    """A stage's settings in the config: `defaults`, and `overrides` by data set, teacher target or pair."""

    defaults: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = Field(
        {}, description="keyed by `dataset`, `dataset_teacher` or `dataset_teacher_student`; the more specific wins"
    )


class Config(Settings):
    """config/config.yaml with config/datasets.yaml as `datasets` and config/methods/*.yaml as `methods`."""

    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1, description="one student per seed")
    scatter: Count = Field(1, description="parallel shards of the init bank; any number gives the same bank")
    teacher: Section = Section()
    init_bank: Section = Section()
    augment: Section = Section()
    evaluate: Section = Section()
    imported: dict[Annotated[str, Field(pattern=r"^[a-z0-9]+_[a-z0-9]+$")], str] = Field(
        {}, description="`dataset_model: FILE.pth`: a checkpoint of your own that is imported instead of trained"
    )
    datasets: dict[Annotated[str, Field(pattern=r"^[a-z0-9]+$")], DatasetSettings] = {}
    methods: dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], Section] = {}

    @model_validator(mode="after")
    def _unique_seeds(self) -> Config:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ from each other")
        return self

    def stage(
        self, stage: str, dataset: str, teacher: str = "", student: str = "", method: str = DEFAULT_METHOD
    ) -> StageSettings:
        """The settings of one job: defaults, then the overrides that fit, from the general to the specific."""
        if stage == "distill":
            section = self.methods.get(method)
            if section is None:
                raise UserError(f"unknown method '{method}'; {nearest(method, self.methods or METHOD_NAMES)}.")
        else:
            section = getattr(self, stage.replace("-", "_"))
        values: dict[str, Any] = merge({}, section.defaults)
        keys = [
            "_".join(part for part in parts if part) for parts in ((dataset,), (dataset, teacher), (dataset, teacher, student))
        ]
        for key in dict.fromkeys(keys):
            values = merge(values, section.overrides.get(key, {}))
        where = f"{method if stage == 'distill' else stage} settings" + (f" of {keys[-1]}" if keys[-1] else "")
        return parse(STAGES[stage], values, where)  # type: ignore[return-value]


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

    Every section is resolved once, so that a fault in any of them shows before anything runs.
    """
    folder = Path(folder)
    content = read_yaml(folder / "config.yaml")
    if not isinstance(content, Mapping):
        raise UserError(f"{folder / 'config.yaml'}: expected a mapping of keys to values.")
    datasets = folder / "datasets.yaml"
    values = merge({"datasets": read_yaml(datasets) if datasets.exists() else {}}, content)
    values = merge({"methods": {path.stem: read_yaml(path) for path in sorted(folder.glob("methods/*.yaml"))}}, values)
    return check_config(merge(values, changes or {}), str(folder))


def check_config(values: Any, where: str) -> Config:
    """Validate a whole config, the overrides of every section included."""
    config: Config = parse(Config, values, where)  # type: ignore[assignment]
    for method in config.methods:
        if method not in METHOD_NAMES:
            raise UserError(f"{where}: unknown method '{method}'; {nearest(method, METHOD_NAMES)}.")
    for pair in config.imported:
        _check_target(pair, 2, config, f"{where}: imported")
    for stage in STAGES:
        sections = config.methods if stage == "distill" else {DEFAULT_METHOD: getattr(config, stage.replace("-", "_"))}
        for method, section in sections.items():
            for key in section.overrides:
                _check_target(key, 2 if stage in TEACHER_STAGES else 3, config, f"{where}: overrides of {stage}")
            for key in ("", *section.overrides):
                dataset, teacher, student = (*key.split("_"), "", "")[:3]
                config.stage(stage, dataset, teacher, student, method)
    return config


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
    if name not in MODEL_NAMES:
        raise UserError(f"unknown model '{name}'; {nearest(name, (*MODEL_NAMES, 'wrn161', 'wrn162', 'wrn401', 'wrn402'))}.")
    return name


def check_dataset(name: str, config: Config) -> DatasetSettings:
    """The data set's entry; an unknown name is a `UserError` with the nearest known names."""
    if name not in config.datasets:
        raise UserError(f"unknown data set '{name}'; {nearest(name, config.datasets)}. Add it to config/datasets.yaml.")
    return config.datasets[name]
