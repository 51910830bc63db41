"""Made-up results with the runs that they were made of."""

import torch

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.datasets.info import DatasetInfo
from dfkd.evaluation.formats import ResultFile, write_result
from dfkd.evaluation.predict import write_predictions
from dfkd.evaluation.published import matching
from dfkd.evaluation.result import summarise

TARGET = "cifar10_wrn402_wrn161"
IMAGES = 1000
LABELS = torch.arange(IMAGES) % 2
COST = {"images": 0, "teacher_queries": 0, "optimiser_steps": 0, "peak_memory": 1}


def stage_cost(seconds, images, queries, seeds=0):
    amounts = COST | {"seconds": seconds, "images": images, "teacher_queries": queries}
    if not seeds:
        return amounts | {"jobs": 1, "per_seed": None}
    return {key: seeds * value for key, value in amounts.items()} | {"jobs": seeds, "per_seed": amounts}


def make(root, method, accuracies, **changes):
    """A result with its runs, whose students have the first `accuracies` % of the test images right."""
    runs = root / "results" / "runs" / method / TARGET
    info = DatasetInfo(
        name="cifar10", classes=["a", "b"], image_size=8, channels=3, mean=[0.0] * 3, std=[1.0] * 3, crop_padding=0, flip=False
    )
    for seed, accuracy in enumerate(accuracies):
        folder = runs / f"seed{seed}"
        answers = torch.where(torch.arange(IMAGES) < round(IMAGES * accuracy / 100), LABELS, 1 - LABELS)
        logits = torch.nn.functional.one_hot(answers, 2)
        write_predictions(folder / "predictions.h5", {"teacher": logits, "student": logits}, LABELS, {})
        (folder / "history.csv").write_text(f"epoch,acc1,agree1\n1,50.0,50.0\n2,{accuracy},60.0\n")
        meta = BankMeta(kind="run", dataset=info, teacher_sha256="t" * 64, stage="distill", stage_version=1)
        with BankWriter(root / "writing.lmdb", meta, resume=False) as bank:
            if method != "real":
                bank.append_images(torch.full((3, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
            bank.publish(folder / "bank.lmdb")
    metric = summarise(accuracies).model_dump()
    half = summarise([0.5] * len(accuracies)).model_dump()
    content = {
        "dataset": "cifar10",
        "method": method,
        "data_free": method != "real",
        "notes": {},
        "teacher": {"name": "wrn402", "params": 2243546, "acc1": 94.87},
        "student": {"name": "wrn161", "params": 175066},
        "seeds": list(range(len(accuracies))),
        "acc1": metric,
        "best_acc1": summarise([value + 1 for value in accuracies]).model_dump(),
        "augmentation": None,
        "published": [figure.model_dump() for figure in matching("cifar10", "wrn402", "wrn161")],
        "cost": {
            "teacher": stage_cost(1000.0, 0, 0),
            "init-bank": stage_cost(40.0, 800, 7),
            "distill": stage_cost(10.0, 200, 30, len(accuracies)),
            "evaluate": stage_cost(5.0, 0, 1000, len(accuracies)),
        },
        "provenance": {
            "date": "2026-01-01T00:00:00+00:00", "config_hash": "c", "versions": {}, "revision": "r", "hardware": {},
            "artefacts": {"teacher": "t" * 64},
        },
    }  # fmt: skip
    content |= dict.fromkeys(("acc5", "agree1", "lp", "one_minus_js_distance", "nll", "ece"), half)
    path = root / "results" / method / f"{TARGET}.json"
    write_result(path, ResultFile.model_validate(content | changes))
    return path
