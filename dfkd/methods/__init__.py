"""The methods: name → settings, synthesizer, objective, banks. What the workflow has to know of them; imports no torch.

A method is two choices: how images are made (a `Synthesizer`) and what the student minimises on them (an `Objective`).
docs/extending.md shows how to add one, from outside the package too.
"""

from __future__ import annotations

from dataclasses import dataclass

from dfkd.errors import UserError
from dfkd.methods.kd import FeatureSettings, KDSettings, ObjectiveSettings, TransferSettings
from dfkd.methods.kd_stages import (
    ABSettings,
    CRDKDSettings,
    CRDSettings,
    FSPSettings,
    FTSettings,
    SemCKDSettings,
    TwoStageSettings,
)
from dfkd.methods.objectives import (
    ATSettings,
    CCSettings,
    DKDSettings,
    FitNetSettings,
    KDrefineSettings,
    LogitStdSettings,
    NSTSettings,
    PKTSettings,
    RKDSettings,
    SPSettings,
    SRRLSettings,
    SVDSettings,
    VanillaSettings,
    VIDSettings,
)
from dfkd.methods.settings import (
    AdaDFKDSettings,
    CMISettings,
    ContrastiveSettings,
    CSDSettings,
    CuDFKDSettings,
    DAFLSettings,
    DDASettings,
    DeepInversionSettings,
    DFADSettings,
    DFQSettings,
    FastSettings,
    FixedSettings,
    GenerativeSettings,
    InversionSettings,
    MethodSettings,
    NAYERSettings,
    NoiseSettings,
    SampledSettings,
    StatisticsSettings,
    SynthesisSettings,
    ZSKTSettings,
)
from dfkd.plugins import note

__all__ = [
    "ALIASES",
    "DEFAULT_METHOD",
    "METHODS",
    "RESERVED",
    "ABSettings",
    "ATSettings",
    "AdaDFKDSettings",
    "CCSettings",
    "CMISettings",
    "CRDKDSettings",
    "CRDSettings",
    "CSDSettings",
    "ContrastiveSettings",
    "CuDFKDSettings",
    "DAFLSettings",
    "DDASettings",
    "DFADSettings",
    "DFQSettings",
    "DKDSettings",
    "DeepInversionSettings",
    "FSPSettings",
    "FTSettings",
    "FastSettings",
    "FeatureSettings",
    "FitNetSettings",
    "FixedSettings",
    "GenerativeSettings",
    "InversionSettings",
    "KDSettings",
    "KDrefineSettings",
    "LogitStdSettings",
    "Method",
    "MethodSettings",
    "NAYERSettings",
    "NSTSettings",
    "NoiseSettings",
    "ObjectiveSettings",
    "PKTSettings",
    "RKDSettings",
    "SPSettings",
    "SRRLSettings",
    "SVDSettings",
    "SampledSettings",
    "SemCKDSettings",
    "StatisticsSettings",
    "SynthesisSettings",
    "TransferSettings",
    "TwoStageSettings",
    "VIDSettings",
    "VanillaSettings",
    "ZSKTSettings",
    "register_method",
    "transfer_set",
]


@dataclass(frozen=True)
class Method:
    """What the workflow and the command line know of a method without importing it."""

    settings: type[MethodSettings]
    synthesizer: str  # "module:class"
    objective: str = "dfkd.distillation.kd:KD"  # "module:class"
    banks: tuple[str, ...] = ()  # the teacher's banks that it starts from: `init`, `variations`
    generator: bool = False  # its generator lives for the whole run and is kept as an artefact
    real: bool = False  # reads the real training images: not data-free
    transfer: bool = False  # reads the images that its setting `transfer_set` names; settings are TransferSettings
    first_stage: str = ""  # "module:class" of what is trained before the student's run; settings are TwoStageSettings
    equal_channels: bool = False  # takes only pairs whose feature maps have the same channels, such as resnet56 and resnet20


def _with_data(
    settings: type[ObjectiveSettings], objective: str, first_stage: str = "", equal_channels: bool = False
) -> Method:
    """An objective of `dfkd.distillation.zoo` on a transfer set, and its first stage if it has one."""
    module = "dfkd.distillation.zoo."
    return Method(
        settings,
        "dfkd.synthesis.fixed:Fixed",
        module + objective,
        transfer=True,
        first_stage=first_stage and module + first_stage,
        equal_channels=equal_channels,
    )


METHODS: dict[str, Method] = {
    "dda": Method(DDASettings, "dfkd.synthesis.dda:DDA", "dfkd.distillation.csd:CSDObjective", ("init", "variations")),
    "csd": Method(CSDSettings, "dfkd.synthesis.csd:CSD", "dfkd.distillation.csd:CSDObjective", ("init",)),
    "cmi": Method(CMISettings, "dfkd.synthesis.cmi:CMI"),
    "cmi-adversarial": Method(CMISettings, "dfkd.synthesis.cmi:CMI", banks=("init",)),
    "cmi-nonadversarial": Method(FixedSettings, "dfkd.synthesis.fixed:Fixed", banks=("init",)),
    "deepinv": Method(DeepInversionSettings, "dfkd.synthesis.deepinv:DeepInversion"),
    "dafl": Method(DAFLSettings, "dfkd.synthesis.dafl:DAFL", generator=True),
    "zskt": Method(ZSKTSettings, "dfkd.synthesis.zskt:ZSKT", generator=True),
    "dfad": Method(DFADSettings, "dfkd.synthesis.dfad:DFAD", generator=True),
    "dfq": Method(DFQSettings, "dfkd.synthesis.dfq:DFQ", generator=True),
    "fast": Method(FastSettings, "dfkd.synthesis.fast:Fast", generator=True),
    "fastmeta": Method(FastSettings, "dfkd.synthesis.fast:FastMeta", generator=True),
    "cudfkd": Method(CuDFKDSettings, "dfkd.synthesis.cudfkd:CuDFKD", "dfkd.distillation.self_paced:SelfPaced", generator=True),
    "adadfkd": Method(
        AdaDFKDSettings, "dfkd.synthesis.adadfkd:AdaDFKD", "dfkd.distillation.self_paced:Relational", generator=True
    ),
    "nayer": Method(NAYERSettings, "dfkd.synthesis.nayer:NAYER"),
    "noise": Method(NoiseSettings, "dfkd.synthesis.controls:Noise"),
    "real": Method(FixedSettings, "dfkd.synthesis.controls:Real", real=True),
    "kd": Method(KDSettings, "dfkd.synthesis.fixed:Fixed", "dfkd.distillation.kd:VanillaKD", transfer=True),
    "kd-vanilla": _with_data(VanillaSettings, "vanilla:Vanilla"),
    "kd-logitstd": _with_data(LogitStdSettings, "standardised:LogitStd"),
    "kdrefine": _with_data(KDrefineSettings, "standardised:KDrefine"),
    "kd-dkd": _with_data(DKDSettings, "dkd:DKD"),
    "kd-fitnet": _with_data(FitNetSettings, "fitnet:FitNet"),
    "kd-at": _with_data(ATSettings, "at:AT"),
    "kd-sp": _with_data(SPSettings, "sp:SP"),
    "kd-cc": _with_data(CCSettings, "cc:CC"),
    "kd-vid": _with_data(VIDSettings, "vid:VID"),
    "kd-rkd": _with_data(RKDSettings, "rkd:RKD"),
    "kd-pkt": _with_data(PKTSettings, "pkt:PKT"),
    "kd-nst": _with_data(NSTSettings, "nst:NST"),
    "kd-svd": _with_data(SVDSettings, "svd:SVD", equal_channels=True),
    "kd-srrl": _with_data(SRRLSettings, "srrl:SRRL"),
    "kd-crd": _with_data(CRDSettings, "crd:CRD"),
    "kd-crd-kd": _with_data(CRDKDSettings, "crd:CRD"),
    "kd-semckd": _with_data(SemCKDSettings, "semckd:SemCKD"),
    "kd-ab": _with_data(ABSettings, "ab:AB", first_stage="ab:Boundaries"),
    "kd-ft": _with_data(FTSettings, "ft:FT", first_stage="ft:Paraphrasing"),
    "kd-fsp": _with_data(FSPSettings, "fsp:FSP", first_stage="fsp:Flow", equal_channels=True),
}
# Second names: results have a folder of their own, the settings are those of the first name.
ALIASES = {"adi": "deepinv"}
METHODS |= {alias: METHODS[name] for alias, name in ALIASES.items()}
DEFAULT_METHOD = "dda"

# Folders that lie beside those of the methods in results/.
RESERVED = ("teachers", "banks", "runs", "benchmarks", "checkpoints", "caches", "compare", "campaigns", "scratch")


def transfer_set(method: str, settings: MethodSettings) -> tuple[str, str]:
    """Kind and value of the images that are given to a method and that it distils on as they are; ("", "") for most.

    The kinds: `train`, `dataset`, `folder`, `bank`; a value is the data set's name, the folder, `init`, `variations` or a bank.
    """
    if METHODS[method].real:
        return "train", ""
    return settings.transfer if METHODS[method].transfer and isinstance(settings, TransferSettings) else ("", "")


def register_method(name: str, method: Method) -> None:
    """Add a method of your own; its settings are those of config/methods/NAME.yaml, its target results/NAME/….json.

    Raises:
        UserError: the name is taken or not of the form [a-z0-9-]+, or the method is not what the workflow can run.
    """
    if not (isinstance(method, Method) and isinstance(method.settings, type) and issubclass(method.settings, MethodSettings)):
        raise UserError(f"method '{name}': expected Method(settings, …) with a subclass of MethodSettings.")
    own = f"{method.settings.__module__}:{method.settings.__name__}"
    parts = [part for part in (method.synthesizer, method.objective, method.first_stage) if part]
    note("method", name, "[a-z0-9-]+", (*METHODS, *RESERVED), *parts, own)
    if method.transfer and not issubclass(method.settings, TransferSettings):
        raise UserError(f"method '{name}': a transfer set needs settings derived from TransferSettings.")
    if method.first_stage and not (method.transfer and issubclass(method.settings, TwoStageSettings)):
        raise UserError(f"method '{name}': a first stage needs a transfer set and settings derived from TwoStageSettings.")
    if not set(method.banks) <= {"init", "variations"}:
        raise UserError(f"method '{name}': banks {method.banks}; there are 'init' and 'variations'.")
    METHODS[name] = method
