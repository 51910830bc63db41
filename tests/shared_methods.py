"""What a synthesis and two student steps of each method come to; as a program, `shared_methods.py FOLDER PROCESSES METHOD…`.

In float64 throughout, so that the order of sums cannot be seen.
"""

import sys
from pathlib import Path

import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Batch
from dfkd.distillation.run import build_method
from dfkd.launch import launch
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.synthesizer import FreshSynthesizer

IMAGES = 13  # of a batch: no number of processes divides it
INFO = DatasetInfo(
    name="bars", classes=["a", "b", "c"], image_size=8, channels=1, mean=[0.5], std=[0.25], crop_padding=1, flip=True
)
SMALL = {
    "precision": "reference", "batch_size": IMAGES, "synthesis_batch_size": IMAGES, "g_steps": 2, "latent_size": 8, "width": 4,
    "epochs": 4, "warmup": 0, "queue": 2 * IMAGES, "begin": 0.0, "adversarial": "js", "log": True, "keep": "best",
}  # fmt: skip


def found(method, runtime):
    """Terms, images and weights after an epoch that begins with a synthesis."""
    seed_everything(0)
    teacher, student = (build_model(name, 3, 1, 8).double() for name in ("wrn101", "wrn102"))
    for _ in range(4):
        teacher(torch.randn(32, 1, 8, 8))
    teacher.eval().requires_grad_(False)
    card = WeightsCard(
        architecture="wrn101", dataset=INFO, role="teacher", stage="teacher", stage_version=1, settings={}, seed=0
    )
    fields = METHODS[method].settings.model_fields
    settings = METHODS[method].settings(**{name: value for name, value in SMALL.items() if name in fields})
    synthesizer, objective = build_method(method, teacher, student, card, settings, runtime)
    result, ranks = {}, runtime.ranks
    for epoch in range(2):
        seed_everything(1, epoch)
        made = synthesizer.synthesize(epoch)
        result |= {f"synthesis {epoch} {name}": torch.tensor(value) for name, value in made.terms.items()}
        result[f"images {epoch}"], result[f"labels {epoch}"] = made.images, made.labels
        objective.begin_epoch(epoch, 0.05)
        for step in range(2):
            if isinstance(synthesizer, FreshSynthesizer):
                images = synthesizer.batch(IMAGES)
            else:
                images = ranks.mine(torch.rand(IMAGES, 1, 8, 8))
            labels = ranks.mine(torch.randint(3, (IMAGES,)))
            terms = objective.step(Batch(images, labels, ranks.mine(torch.arange(IMAGES)), share=ranks.share(IMAGES)))
            result[f"terms {epoch} {step}"] = terms
    if isinstance(synthesizer, FreshSynthesizer):
        result["sample"] = synthesizer.sample(IMAGES)
    return result | student.state_dict()


def main(folder, processes, methods):
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    launch(processes, "cpu")
    runtime = Runtime.create_shared("reference", "cpu")
    torch.save({method: found(method, runtime) for method in methods}, Path(folder, f"rank{runtime.ranks.rank}.pt"))
    runtime.ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
