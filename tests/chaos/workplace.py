"""The workflow that is killed: digits at the smallest budget that has every artefact, images decoded by worker processes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TARGET = "results/digits_wrn101_wrn101.json"
STUDENT = "results/runs/dda/digits_wrn101_wrn101/seed0/student.safetensors"  # without evaluation, pictures and pages
PATIENCE = 900  # seconds that one command may take; far more than it does
FAST = {"precision": "reference"}
# Every loss is small where nothing is learnt; what counts here is that each stage has several states to be killed in.
CONFIG = {
    "scatter": 2,
    "teacher": {"defaults": FAST | {"epochs": 6, "schedule": "cosine", "batch_size": 64, "shuffle_buffer": 64}},
    "init_bank": {"defaults": FAST | {"batches": 6, "batch_size": 20, "steps": 8, "latent_size": 16, "width": 8}},
    "augment": {
        "defaults": FAST
        | {
            "backend": "bank-diffusion",
            "threshold": 0.0,
            "bank_diffusion": {"channels": [8, 16], "train_steps": 30, "batch_size": 16, "sampling_steps": 4},
        }
    },
}
DATASET = {"image_size": 8, "channels": 1, "crop_padding": 1, "flip": False, "mean": [0.3], "std": [0.3], "keep_packed": True}
METHOD = FAST | {
    "epochs": 4,
    "kd_steps": 4,
    "batch_size": 24,
    "synthesis_batch_size": 24,
    "g_steps": 4,
    "latent_size": 16,
    "width": 8,
}


def pack_digits(folder):
    """scikit-learn's digits as a packed file of PNGs: 20 of a class to train on, 5 to test."""
    from sklearn.datasets import load_digits

    from dfkd.packed.pack import pack

    digits = load_digits()
    for label in range(10):
        for number, index in enumerate(np.flatnonzero(digits.target == label)[:25]):
            place = folder / "files" / ("train" if number < 20 else "test") / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * (255 / 16)).astype(np.uint8)).save(place / f"{number}.png")
    pack(folder / "files", folder / "digits.lmdb")
    return folder / "digits.lmdb"


class Workplace:
    """A folder with a small budget in which the workflow is run, by programs that have their imports behind them."""

    def __init__(self, folder, programs, packed):
        self.folder, self.programs = folder, programs
        (folder / "config" / "methods").mkdir(parents=True)
        entry = DATASET | {"source": f"packed:{packed}"}
        for name, content in (("datasets", {"digits": entry}), ("config", CONFIG), ("methods/dda", {"defaults": METHOD})):
            (folder / "config" / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def start(self, *words):
        """Snakemake, its output appended to `snakemake.log`; one thread a stage, so that equal runs are equal."""
        paths = [str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        place = ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(self.folder)]
        with (self.folder / "snakemake.log").open("ab") as log:
            return subprocess.Popen(
                [self.programs / "snakemake", *place, "--cores", "1", *words],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def unlock(self):
        """What a user types after Snakemake was killed."""
        return self.start("--unlock", TARGET).wait(PATIENCE)

    def log(self):
        """The end of what Snakemake has said."""
        return (self.folder / "snakemake.log").read_text()[-3000:]

    def artefacts(self):
        """SHA-256 of every artefact; what holds times by design is left out, or read without them."""
        found = {}
        for path in sorted(path for top in ("data", "results") for path in (self.folder / top).rglob("*") if path.is_file()):
            name = path.relative_to(self.folder)
            if holds_times(name):
                continue
            content = path.read_bytes()
            if path.suffix == ".json" and b'"provenance"' in content:
                result = json.loads(content)
                del result["cost"], result["provenance"]["date"], result["provenance"]["hardware"]
                content = json.dumps(result, sort_keys=True).encode()
            found[str(name)] = hashlib.sha256(content).hexdigest()
        return found

    def left_over(self):
        """Files that should not outlive a finished workflow: partial ones, checkpoints."""
        kept = (path for path in (self.folder / "results").rglob("*") if path.is_file())
        names = (path.relative_to(self.folder) for path in kept)
        return sorted(str(name) for name in names if ".partial" in name.name or "checkpoints" in name.parts)

    def remove(self):
        """All of it."""
        shutil.rmtree(self.folder)


def until_student(artefacts):
    """Of the artefacts of the whole target those that are made on the way to the student."""
    later = (".html", ".png", ".scores.h5", "predictions.h5", "metrics.json", Path(TARGET).name)
    return {name: digest for name, digest in artefacts.items() if not name.endswith(later) or name.endswith("filter.png")}


def holds_times(name):
    """Whether a file of `results/` says when it was made or what it cost: the pages of costs among them."""
    return (
        "cost" in name.name
        or "timing.csv" in name.name
        or bool({"tensorboard", "benchmarks", "checkpoints"} & set(name.parts))
        or (name.suffix == ".html" and (name.stem in ("report", "summary") or name.stem.startswith("digits_")))
    )
