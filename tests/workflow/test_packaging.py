import importlib
import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def requirements():
    """What pyproject.toml asks for, tests included, by name."""
    extras = PROJECT["optional-dependencies"]
    own = [item for item in map(Requirement, extras["test"]) if item.name == PROJECT["name"]]
    named = [extra for item in own for extra in item.extras]
    texts = [*PROJECT["dependencies"], *extras["test"], *(text for extra in named for text in extras[extra])]
    found = {canonicalize_name(item.name): item for item in map(Requirement, texts)}
    return {name: item for name, item in found.items() if name != PROJECT["name"]}


def pins(lines):
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9-]+)==([0-9.]+)", line)
        assert match, f"not a plain pin: {line}"
        found[canonicalize_name(match[1])] = match[2]
    assert len(found) == len(lines)
    return found


def pinned():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return pins([line for line in lines if line and not line.startswith("#")])


def test_every_direct_dependency_is_pinned_within_its_range():
    wanted, found = requirements(), pinned()
    assert found.keys() == wanted.keys()
    assert [name for name, version in found.items() if not wanted[name].specifier.contains(version)] == []


def test_torch_and_torchvision_are_of_one_release():
    found = pinned()
    assert (found["torch"], found["torchvision"]) == ("2.15.0", "0.29.2")
    assert requirements()["torch"].specifier.contains("2.11.0")


def test_conda_installs_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    assert pins(pip["pip"]) == pinned()
    python = next(Requirement(item.replace(" ", "")) for item in plain if item.startswith("python"))
    assert str(python.specifier) == PROJECT["requires-python"]
    assert "pip" in plain


def test_make_installs_once_and_before_what_it_runs(tmp_path):
    def make(*words):
        command = ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", *words]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    first = make("test")
    assert any("pip install" in line and "-r requirements.txt" in line for line in first)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".installed").touch()
    again = make("test")[-6:]
    programs = [Path(line.split()[0]).name for line in again]
    assert programs == ["ruff", "ruff", "mypy", "snakefmt", "snakemake", "pytest"]
    assert again == first[-6:]
    assert make("test-cluster")[-1].endswith("pytest -n 2 --dist loadfile tests/cluster")
    run = make("run")
    assert [line.split(maxsplit=1)[1] for line in run] == [
        "--cores all results/digits_wrn162_wrn161.json",
        "show results/digits_wrn162_wrn161.json",
    ]


def test_the_plugins_of_clusters_are_extras_and_tested():
    extras = PROJECT["optional-dependencies"]
    plugins = {*extras["slurm"], *extras["kubernetes"]}
    assert {canonicalize_name(Requirement(text).name) for text in plugins} == {
        "snakemake-executor-plugin-slurm",
        "snakemake-executor-plugin-kubernetes",
        "snakemake-storage-plugin-s3",
    }
    assert plugins <= {*extras["test"]}


def test_plain_pytest_leaves_the_cluster_alone():
    assert "cluster" in PYPROJECT["tool"]["pytest"]["ini_options"]["norecursedirs"]
    assert [path.name for path in ROOT.glob("tests/**/cluster") if path.is_dir()] == ["cluster"]


def test_without_root_the_cluster_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "cluster"))
    slurm = importlib.import_module("slurm")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert slurm.missing().startswith("the tests of the cluster start SLURM's daemons and need root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None if name == "sbatch" else f"/usr/bin/{name}")
    assert slurm.missing() == "the tests of the cluster need sbatch: install Debian's slurm-wlm and munge."


def test_ci_runs_exactly_the_two_makes_of_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[:2] == ["#!/usr/bin/env bash", "set -euo pipefail"]
    assert lines[-2:] == ["make test", "make test-cluster"]
