"""The shipped profiles: what they ask for, by dry run and with stubs for the stages."""

import os
import re
import subprocess
from itertools import combinations

import pytest
import yaml
from workflow_tools import ROOT, STUB, Workflow, derived, jobs_in, relatives, rules

PROFILES = ROOT / "workflow" / "profiles"
TARGET = "results/digits_wrn162_wrn161.json"
JOBS = 16
LONG = {"teacher", "scratch", "init_shard", "augment", "first_stage", "distill", *relatives()}

# A job that notes which GPUs it saw, and from when to when.
NOTED = """
import os, time
from dfkd import gpus

if gpus.COUNT in os.environ:
    gpus.installed_gpus = list
    gpus.take_gpus()
    begin = time.monotonic()
    time.sleep(0.2)
    with open("gpus.txt", "a") as file:
        file.write(f"{words[0]} {begin} {time.monotonic()} {os.environ[gpus.VISIBLE]}\\n")
"""


def content(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def cluster_rules():
    """Every rule whose jobs are submitted."""
    submitted = {name for name, text in rules().items() if "localrule: True" not in text}
    return submitted | {name for name, own in derived().items() if own in submitted}


@pytest.mark.parametrize("name", ["default", "local-gpu", "slurm", "kubernetes"])
def test_every_setting_is_explained(name):
    lines = (PROFILES / name / "config.yaml").read_text().splitlines()
    silent = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r"[a-z_]", line) and "#" not in line and not before.startswith("#")
    ]
    assert silent == []


def test_on_slurm_every_rule_grows_with_its_attempts():
    profile = content("slurm")
    assert set(profile["set-resources"]) == cluster_rules()
    for name, wanted in profile["set-resources"].items():
        assert re.fullmatch(r"\d+ \* attempt", wanted["mem_mb"]), name
        assert re.fullmatch(r"\d+ \* attempt", wanted["runtime"]), name
        assert wanted.get("slurm_extra") == ("'--signal=TERM@120'" if name in LONG else None)
    assert (profile["slurm-status-command"], profile["retries"]) == ("squeue", 2)
    assert not [name for name, text in rules().items() if "retries:" in text]


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_groups_are_of_short_rules(name):
    groups = content(name)["groups"]
    assert set(groups) <= cluster_rules() - LONG
    assert {groups[rule] for rule in ("init_bank", "init_curves")} == {"merge"}
    assert "init_page" not in groups  # minutes, and the augmentation would wait for it
    assert {groups[rule] for rule in ("evaluate", "run_pictures")} == {"evaluation"}


def test_kubernetes_gives_more_memory_to_what_may_need_it():
    profile = content("kubernetes")
    large = {name for name, text in rules().items() if "gpu=" in text} | set(relatives())
    assert set(profile["set-resources"]) == large
    assert all(re.fullmatch(r"\d+ \* attempt", wanted["mem_mb"]) for wanted in profile["set-resources"].values())
    assert {"gpu_manufacturer", "scale", "disk_mb"} <= set(profile["default-resources"])


def test_a_rule_with_gpus_says_how_many_to_its_stage():
    for name, text in rules().items():
        assert ("gpu=" in text) is ('"DFKD_GPUS={resources.gpu} "' in text), name


def test_the_plan_of_the_slurm_profile(workflow):
    done = workflow("--workflow-profile", str(PROFILES / "slurm"), "--dry-run", "--", TARGET)
    assert done.returncode == 0, done.stdout
    assert sum(jobs_in(done.stdout).values()) == JOBS
    assert sorted(re.findall(r"Group job (\w+) ", done.stdout)) == ["evaluation", "evaluation", "merge", "pages"]


def test_two_snakemakes_on_two_gpus(tmp_path):
    words = ["--workflow-profile", str(PROFILES / "local-gpu"), "--cores", "4", "--set-threads", "scratch=1"]
    words += ["evaluate_scratch=1", "--set-resources", "evaluate_scratch:gpu=0", "--config", "seeds=[0,1,2]"]
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        workflow = Workflow(tmp_path / name, tmp_path / f"bin-{name}", STUB + NOTED)
        workflow.environment |= {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}
        workflow.environment.pop("DFKD_GPU_LOCKS", None)
        command = ["snakemake", *workflow.place(), *words, "--", "results/scratch/digits_wrn161.json"]
        runs.append(
            subprocess.Popen(command, env=workflow.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in runs:
        said, _ = process.communicate()
        assert process.returncode == 0, said
        assert "gpu=2" in said.replace('Resource("gpu", 2)', "2")
    assert sorted(path.name for path in tmp_path.glob(f"dfkd-gpus-{os.getuid()}/*")) == ["0.lock", "1.lock", "queue"]
    lines = [line.split() for name in ("one", "two") for line in (tmp_path / name / "gpus.txt").read_text().splitlines()]
    assert [line for line in lines if line[0] == "evaluate" and line[3:]] == []  # asked for none, see none
    trained = [(gpu, float(begin), float(end)) for stage, begin, end, *gpu in lines if stage == "teacher"]
    assert len(trained) == 6
    assert {gpu for (gpu,), _, _ in trained} == {"0", "1"}
    for (one, begin, end), (other, begin_, end_) in combinations(trained, 2):
        assert one != other or end <= begin_ or end_ <= begin
