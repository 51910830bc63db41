"""What runs start from: the hub, pretrained weights, the configuration, data sets."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from dfkd.config import SOURCES, Config, load_config
from dfkd.doctor.finding import Finding
from dfkd.errors import UserError, nearest
from dfkd.methods import ALIASES, METHODS, NAYERSettings
from dfkd.settings import AugmentSettings, DatasetSettings

HUB_LIMIT = 3.0  # seconds
WEIGHTS = ("*.safetensors", "*.bin")


def hub_address() -> str:
    """Where weights would be downloaded from."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def ask_hub(address: str, limit: float = HUB_LIMIT) -> str:
    """Empty if the hub answers a HEAD request within the limit, else why not. Touches the network."""
    outcome = [f"no answer within {limit:.0f} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=limit):
                outcome[0] = ""
        except urllib.error.HTTPError:  # it answers, whatever it thinks of the request
            outcome[0] = ""
        except (OSError, ValueError) as error:
            outcome[0] = str(getattr(error, "reason", error))

    asking = threading.Thread(target=ask, daemon=True)  # the limit of a socket does not cover the look-up of its name
    asking.start()
    asking.join(limit)
    return outcome[0]


def check_hub(offline: bool, ask: Callable[[str], str] = ask_hub) -> Finding:
    """Whether pretrained weights can be downloaded here; the line names the host that was asked."""
    address = hub_address()
    host = urlparse(address).hostname or address
    remedy = "needed to download weights alone; where there is network, `hf download` them, and copy the cache"
    if offline:
        return Finding("inputs", "hub", "ok", f"{host} was not asked (--offline)")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(
            "inputs", "hub", "better", f"{host} was not asked: HF_HUB_OFFLINE is set", "unset it to download weights"
        )
    fault = ask(address)
    if fault:
        return Finding("inputs", "hub", "better", f"{host} cannot be reached ({fault})", remedy)
    return Finding("inputs", "hub", "ok", f"{host} can be reached")


def read_config(folder: Path) -> tuple[Config | None, Finding]:
    """The configuration, and how it is."""
    if not (folder / "config.yaml").exists():
        says = f"no {folder / 'config.yaml'} here"
        remedy = "for whole runs, work in the folder of the checkout; stages run by hand anywhere"
        return None, Finding("inputs", "config", "better", says, remedy)
    try:
        config = load_config(folder)
    except UserError as error:
        return None, Finding("inputs", "config", "missing", str(error), "mend it: no target can be made before", True)
    return config, Finding("inputs", "config", "ok", f"{folder}: {len(config.datasets)} data sets, seeds {config.seeds}")


def wanted_weights(config: Config) -> dict[tuple[str, str | None], str]:
    """The pretrained weights that runs of this configuration would load: (hub id or folder, revision) → what for."""
    wanted: dict[tuple[str, str | None], str] = {}
    for dataset in config.datasets:
        own = config.stage("augment", dataset)
        assert isinstance(own, AugmentSettings)
        if own.backend == "image-variations":
            diffusion = own.image_variations
            wanted[diffusion.model, diffusion.revision] = "image-variations"
            if diffusion.decoder == "taesd":
                wanted[diffusion.taesd, None] = "image-variations' decoder"
        if own.backend != "none" and own.embedding == "clip":
            wanted[own.clip, None] = "fidelity filter"
    for name in METHODS:
        if name in ALIASES:
            continue
        settings = config.stage("distill", next(iter(config.datasets), ""), method=name)
        if isinstance(settings, NAYERSettings) and settings.embedding != "orthogonal":
            alternative = " (orthogonal vectors without)" if settings.embedding == "auto" else ""
            wanted.setdefault((settings.clip, None), name + alternative)
    return wanted


def cached(name: str, revision: str | None) -> str:
    """The folder of a hub id in the hub's cache; raises what the hub's library raises for one that is not there."""
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, local_files_only=True)


def check_weights(
    name: str, revision: str | None, purpose: str, snapshot: Callable[[str, str | None], str] = cached
) -> Finding:
    """Whether weights lie in a folder or in the hub's cache; the network is not touched."""
    folder, of = Path(name).expanduser(), f"for {purpose}: {name}"
    if folder.is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if _holds_weights(folder):
            return Finding("inputs", "weights", "ok", f"{of}, a folder")
        return Finding("inputs", "weights", "missing", f"{of}: no folder with weights", "copy the whole model there")
    option = f" --revision {revision}" if revision else ""
    remedy = f"downloaded when first needed; beforehand: `hf download {name}{option}`"
    try:
        there = Path(snapshot(name, revision))
    except Exception:  # the hub's own errors have no class in common
        return Finding("inputs", "weights", "better", f"{of} is not in the hub's cache", remedy)
    if not _holds_weights(there):
        return Finding("inputs", "weights", "better", f"{of} is in the hub's cache, but not whole", remedy)
    return Finding("inputs", "weights", "ok", f"{of}, in the hub's cache")


def _holds_weights(folder: Path) -> bool:
    return any(path.exists() for pattern in WEIGHTS for path in folder.rglob(pattern))  # of a link, what it leads to


def check_dataset(name: str, settings: DatasetSettings, data: Path = Path("data")) -> Finding:
    """How far a data set is: prepared, downloaded, there as a folder, or to be downloaded."""
    label = f"data set {name}"
    prepared = [data / f"{name}.h5", data / f"{name}.test.h5"]
    if all(path.exists() for path in prepared):
        from dfkd.datasets.prepared import read_info

        try:
            infos = [read_info(path) for path in prepared]
        except UserError as error:
            return Finding(
                "inputs", label, "missing", str(error), f"remove {prepared[0]} and {prepared[1]}: the next run makes them"
            )
        return Finding("inputs", label, "ok", f"prepared: {len(infos[0].classes)} classes, {infos[0].image_size} pixels")
    kind, _, value = settings.source.partition(":")
    if kind not in SOURCES:
        remedy = f"mend `source` of {name} in datasets.yaml; {nearest(kind, SOURCES)}"
        return Finding("inputs", label, "missing", f"source {settings.source}: there is no kind '{kind}'", remedy)
    if kind == "torchvision":
        from dfkd.datasets.sources import TORCHVISION, archives

        if value.lower() in TORCHVISION:
            files = archives(TORCHVISION[value.lower()], data / "downloads")
            if all(path.exists() for path in files):
                return Finding("inputs", label, "ok", f"downloaded to {data / 'downloads'}")
            host = urlparse(next(iter(files.values()))).hostname
            return Finding("inputs", label, "ok", f"to be downloaded, from {host}")
    elif kind in ("folder", "hdf5", "packed"):
        path = Path(value).expanduser()
        if path.is_dir() if kind == "folder" else path.is_file():
            return Finding("inputs", label, "ok", f"{kind} {path} is there")
        remedy = f"put the images there, or mend `source` of {name} in datasets.yaml"
        return Finding("inputs", label, "missing", f"{kind} {path} is not there", remedy)
    return Finding("inputs", label, "ok", f"to be prepared from {settings.source}")
