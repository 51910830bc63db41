"""Snakemake on this checkout's workflow, in a working directory of the test's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from dfkd.evaluation.picture_names import EVALUATION_PICTURES
from dfkd.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PICTURES = [f"{name}.png" for name in EVALUATION_PICTURES]

# `dfkd` of this checkout, whatever is installed.
ENTRY = f"""#!{sys.executable}
from dfkd.cli import main

main()
"""

# In place of `dfkd`: writes what each stage writes, with the command as content. For tests of the DAG alone.
STUB = f"""#!{sys.executable}
import sys
from pathlib import Path

words = sys.argv[1:]
if words[0] == "distill" and Path("fail").exists():
    sys.exit("dfkd: told to fail.")
after = {{option: value for option, value in zip(words, words[1:])}}
output = Path(after["-o"] if "-o" in after else words[-1] + "/curves.png")
if words[0] == "evaluate":
    output /= "metrics.json"
beside = {{
    "teacher": [output.stem + ".json", "history.csv", "timing.csv", "cost.json"],
    "init-bank": [output.stem + suffix for suffix in (".cost.json", ".history.csv", ".timing.csv")],
    "augment": ["variations.cost.json", "variations.history.csv", "variations.timing.csv"],
    "first-stage": ["first_stage.json", *("first_stage." + name for name in ("history.csv", "timing.csv", "cost.json"))],
    "distill": ["student.json", "best.safetensors", "best.json", "bank.lmdb", "history.csv", "timing.csv", "cost.json"],
    "evaluate": ["metrics.cost.json", "predictions.h5", *{PICTURES}],
    "plot": ["bank.png", "report.html", "summary.html"],
    "report": ["report.html", "summary.html"],
}}
if after.get("--method") in {sorted(name for name, method in METHODS.items() if method.generator)}:
    beside["distill"] += ["generator.safetensors", "generator.json"]
if words[:2] == ["bank", "page"]:
    beside["bank"] = [output.stem + ".scores.h5", *(["rejected.scores.h5"] if output.stem == "variations" else [])]
if words[:2] == ["bank", "merge"]:
    beside["bank"] = ["init.history.csv", "init.timing.csv"]
paths = [output, *(output.parent / name for name in beside.get(words[0], []))]
options = ("--test-output", "--rejected", "--plot", "--page", "--grid")
paths += [Path(after[option]) for option in options if option in after]
for path in paths:
    path.write_text(" ".join(words))
with open("calls.txt", "a") as calls:
    calls.write(" ".join(words) + "\\n")
"""


# Several invocations in one process, one fork each: Snakemake's imports are most of what a dry run takes.
BATCH = """
import json, os, sys
import snakemake.cli

statuses = []
for words, output in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["snakemake", *words]
        snakemake.cli.main()
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


class Workflow:
    """Runs Snakemake on this checkout's Snakefile in `folder`, with `entry` as the program `dfkd`."""

    timeout = 800  # seconds that one invocation may take

    def __init__(self, folder, commands, entry):
        self.folder = folder
        commands.mkdir(parents=True, exist_ok=True)
        program = commands / "dfkd"
        program.write_text(entry)
        program.chmod(0o755)
        paths = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT)}

    def __call__(self, *words, program=("-m", "snakemake")):
        """Run once; the completed process, its stderr within its stdout."""
        return self._python([*program, *self.place(), *words])

    def batch(self, invocations):
        """Run each list of words; (status, output) of each."""
        outputs = [self.folder / f"batch{number}.txt" for number in range(len(invocations))]
        work = [([*self.place(), *words], str(output)) for words, output in zip(invocations, outputs, strict=True)]
        done = self._python(["-c", BATCH], input=json.dumps(work))
        assert done.returncode == 0, done.stdout
        return [(status, output.read_text()) for status, output in zip(json.loads(done.stdout), outputs, strict=True)]

    def run(self, *targets, config=()):
        """Run for real; the jobs that it ran, with their numbers."""
        done = self("--cores", "2", *(["--config", *config] if config else []), "--", *targets)
        assert done.returncode == 0, done.stdout
        return jobs_in(done.stdout)

    def place(self):
        """The words that every invocation begins with."""
        return ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(self.folder)]

    def _python(self, words, **options):
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.timeout,
            **options,
        )


def plan(*targets, config=()):
    """The words of a dry run."""
    return ["--cores", "2", "--dry-run", *(["--config", *config] if config else []), "--", *targets]


def jobs_in(output):
    """Snakemake's own table of jobs, by rule."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", output, re.DOTALL | re.MULTILINE)
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE)} if table else {}


def rules():
    """Every rule's text, by name."""
    found = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for name, text in re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", path.read_text(), re.DOTALL | re.MULTILINE):
            found[name] = text
    return found


def derived():
    """Rules that are another with other files, in the whole workflow, by name: the rule that they are."""
    texts = [path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    return {name: own for text in texts for own, name in re.findall(r"^use rule (\w+) as (\w+) with:", text, re.MULTILINE)}


def relatives():
    """Rules that are another with other files, by name: the rule whose contract they have, and their text."""
    text = (ROOT / "workflow" / "rules" / "distill.smk").read_text()
    found = re.findall(r"^use rule (\w+) as (\w+) with:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    return {name: (own, changes) for own, name, changes in found}
