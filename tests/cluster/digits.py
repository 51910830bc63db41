"""The digits pipeline at the smallest budget, of networks that can be told to be slow (told.py)."""

import shutil
from pathlib import Path

import yaml
from workflow_tools import ENTRY, ROOT, Workflow

TEACHER, STUDENT = "told162", "told161"
PAIR = f"digits_{TEACHER}_{STUDENT}"
RESULT = f"results/{PAIR}.json"
SCRATCH = f"results/scratch/digits_{STUDENT}.json"
RUN = f"results/runs/dda/{PAIR}/seed0"
BANKS = f"results/banks/digits_{TEACHER}"

CONFIG = {
    "plugins": ["told.py"],
    "compare": ["dda"],
    "teacher": {
        "defaults": {"precision": "reference", "schedule": "cosine", "epochs": 8},
    },
    "init_bank": {"defaults": {"precision": "reference", "batches": 6, "batch_size": 20, "steps": 3}},
    "augment": {
        "defaults": {
            "precision": "reference",
            "backend": "bank-diffusion",
            "threshold": 0.0,
            "bank_diffusion": {"channels": [16, 16], "train_steps": 2, "batch_size": 16, "sampling_steps": 4},
        }
    },
}
METHOD = {
    "precision": "reference",
    "epochs": 4,
    "kd_steps": 2,
    "batch_size": 16,
    "synthesis_batch_size": 16,
    "g_steps": 2,
}
# One core a stage wherever it runs: sums in another order round otherwise.
THREADS = dict.fromkeys(("teacher", "scratch", "init_shard", "augment", "distill", "evaluate", "evaluate_scratch"), 1)
SET_THREADS = ["--set-threads", *(f"{rule}={count}" for rule, count in THREADS.items())]

# Files whose bytes depend on settings and seeds alone.
FILES = [
    *("data/digits.h5", "data/digits.test.h5", f"results/teachers/digits_{TEACHER}/weights.safetensors"),
    *(f"{BANKS}/{name}" for name in ("shards/1-of-1.lmdb", "init.lmdb", "variations.lmdb", "rejected.lmdb")),
    *(f"{BANKS}/{name}" for name in ("init.png", "init.html", "variations.png", "variations.html", "filter.png")),
    *(f"{RUN}/{name}" for name in ("student.safetensors", "best.safetensors", "bank.lmdb", "history.csv")),
    *(f"{RUN}/{name}" for name in ("metrics.json", "predictions.h5", "curves.png", "confusion.png", "bank.html")),
]
SCRATCH_FILES = [f"results/runs/scratch/digits_{STUDENT}/seed0/{name}" for name in ("student.safetensors", "metrics.json")]


def workflow_in(folder):
    """Snakemake in a working directory with this configuration."""
    (folder / "config" / "methods").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "datasets.yaml", folder / "config")
    shutil.copy(Path(__file__).with_name("told.py"), folder)
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "config" / "methods" / "dda.yaml").write_text(yaml.safe_dump({"defaults": METHOD}))
    workflow = Workflow(folder, folder.parent / "bin", ENTRY)
    workflow.timeout = 2000
    return workflow


def lasting(result):
    """What of a result has to be equal wherever it was made: not its date, its machine, and the seconds that it took."""
    steps = {stage: (cost["optimiser_steps"], cost["images"]) for stage, cost in result["cost"].items()}
    provenance = {key: result["provenance"][key] for key in ("config_hash", "artefacts", "versions")}
    return {**result, "cost": steps, "provenance": provenance}
