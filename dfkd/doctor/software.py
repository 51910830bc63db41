"""Python, this package, libraries, Snakemake and its plugins, plugins of your own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from dfkd import __version__
from dfkd.doctor.finding import Finding
from dfkd.errors import UserError
from dfkd.plugins import configured, load_plugins

LEAST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parents[2]  # of a checkout
# Absent, these stop some runs only: pretrained diffusion, pages, exports, energy.
PAGES = {"plotly", "jinja2", "starlette", "uvicorn", "pygments"}
SOME_RUNS = PAGES | {"diffusers", "transformers", "accelerate", "pyarrow", "nvidia-ml-py"}
EXECUTOR, STORAGE = "snakemake-executor-plugin-", "snakemake-storage-plugin-"
Version = Callable[[str], str]


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Python's version."""
    says = f"{'.'.join(map(str, version))} ({platform.python_implementation()}, {sys.prefix})"
    if version >= LEAST_PYTHON:
        return Finding("software", "python", "ok", says)
    return Finding("software", "python", "missing", says, "install Python 3.11 or newer: `make PYTHON=python3.11`", True)


def check_package(revision: str) -> Finding:
    """This package's version and where it lies."""
    commit, changes, _ = revision.partition("+changes")
    says = f"{__version__}, revision {commit[:12]}{' with changes' if changes else ''}, in {ROOT}"
    return Finding("software", "dfkd", "ok", says)


def check_torch(torch: Any) -> Finding:
    """Torch's version and what it was built for; None for a torch that cannot be imported."""
    if torch is None:
        return Finding("software", "torch", "missing", "cannot be imported", "`make`, or pip install -r requirements.txt", True)
    built = "CUDA " + torch.version.cuda if torch.version.cuda else "ROCm " + torch.version.hip if torch.version.hip else "CPU"
    return Finding("software", "torch", "ok", f"{torch.__version__}, built for {built}")


def requirements(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """What the package asks for: of the checkout, or of what was installed."""
    if project.is_file():
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])
    return [text for text in importlib.metadata.requires("dfkd") or [] if "extra ==" not in text]


def check_libraries(wanted: Iterable[str], version: Version = importlib.metadata.version) -> list[Finding]:
    """The libraries against the versions that they may have: one line if all is well, else one for each that is not."""
    from packaging.requirements import Requirement

    findings, count = [], 0
    for item in map(Requirement, wanted):
        count += 1
        remedy = f'`pip install "{item}"`'
        try:
            found = version(item.name)
        except importlib.metadata.PackageNotFoundError:
            needed = item.name not in SOME_RUNS
            findings.append(Finding("software", item.name, "missing", f"absent; wanted: {item.specifier}", remedy, needed))
            continue
        if not item.specifier.contains(found, prereleases=True):
            findings.append(Finding("software", item.name, "better", f"{found}; wanted: {item.specifier}", remedy))
    return findings or [Finding("software", "libraries", "ok", f"{count}, all of versions that they may have")]


def check_snakemake(
    profiles: Path = Path("workflow/profiles"),
    distributions: Callable[[], Iterable[Any]] = importlib.metadata.distributions,
    spec: Callable[[str], Any] = importlib.util.find_spec,
) -> list[Finding]:
    """Snakemake's version, its executors and storages, and whether the profiles' executors are there. None is imported."""
    installed = {
        item.metadata["Name"]: item for item in distributions() if (item.metadata["Name"] or "").startswith("snakemake")
    }
    if "snakemake" not in installed:
        return []  # said among the libraries
    versions = {name: item.version for name, item in installed.items()}
    findings, kinds = list[Finding](), dict[str, list[str]]()
    for prefix in (EXECUTOR, STORAGE):
        kinds[prefix] = []
        for name in sorted(name for name in installed if name.startswith(prefix)):
            fault = _fault(installed[name], versions, spec)
            if fault:
                findings.append(Finding("software", name, "missing", fault, f"`pip install --force-reinstall {name}`"))
            else:
                kinds[prefix].append(name.removeprefix(prefix))
    executors = ", ".join(["local", *kinds[EXECUTOR]])
    storages = ", ".join(kinds[STORAGE]) or "none"
    says = f"{versions['snakemake']}; executors: {executors}; storage plugins: {storages}"
    return [Finding("software", "snakemake", "ok", says), *findings, *_check_profiles(profiles, installed)]


def _fault(item: Any, versions: dict[str, str], spec: Callable[[str], Any]) -> str:
    """Why a plugin of Snakemake will not load, by its metadata; empty for one that will."""
    from packaging.requirements import Requirement

    name = item.metadata["Name"]
    if spec(name.replace("-", "_")) is None:
        return f"{item.version}, but its module {name.replace('-', '_')} is not there"
    for text in item.requires or []:
        wanted = Requirement(text)
        found = versions.get(wanted.name)
        if found is not None and not wanted.specifier.contains(found, prereleases=True):
            return f"{item.version} does not fit {wanted.name} {found} (wanted: {wanted.specifier})"
    return ""


def _check_profiles(profiles: Path, installed: Iterable[str]) -> list[Finding]:
    """A profile whose executor is not installed, for people who mean to use it."""
    findings = []
    for file in sorted(profiles.glob("*/config.yaml")):
        try:
            executor = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("executor", "local")
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            says = " ".join(str(error).split())[:160]
            findings.append(Finding("software", f"profile {file.parent.name}", "missing", f"{file}: {says}", "mend the file"))
            continue
        if executor not in ("local", "dryrun", "touch") and f"{EXECUTOR}{executor}" not in installed:
            says, remedy = f"executor {executor} is not installed", f"for a cluster: `pip install {EXECUTOR}{executor}`"
            findings.append(Finding("software", f"profile {file.parent.name}", "better", says, remedy))
    return findings


def check_plugins(config: Path) -> list[Finding]:
    """Plugins of this package: none of the stages runs while one of them is broken."""
    names = configured(config)
    try:
        load_plugins(names)
    except UserError as error:
        return [
            Finding("software", "plugins", "missing", str(error), f"mend it, or take it out of {config / 'config.yaml'}", True)
        ]
    return [Finding("software", "plugins", "ok", ", ".join(names))] if names else []
