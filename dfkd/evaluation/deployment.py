"""What blocks cost and what is left of it at deployment: parameters, multiply-adds, and the time of a forward pass."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.evaluation.formats import Deployment, Latency
from dfkd.models import build_model, count_macs, count_parameters
from dfkd.models.fold import by_branches, folded_state
from dfkd.models.weights import WeightsCard
from dfkd.runtime import Runtime

BATCHES = (1, 128)  # images of a pass
BUDGET = 0.2  # seconds of passes that are timed, after as many passes as it takes to warm up
PASSES = (5, 200)  # at least, at most


def deployment(card: WeightsCard) -> Deployment | None:
    """Both forms of a network with blocks, by its architecture alone; None for a network without."""
    if card.blocks == "plain":
        return None
    with torch.device("meta"):  # shapes are all that is needed
        trained, deployed = both_forms(card)
    (train, train_macs), (deploy, deploy_macs) = (
        (count_parameters(model), count_macs(model, card.dataset.shape)) for model in (trained, deployed)
    )
    return Deployment(
        blocks=card.blocks, train_params=train, train_macs=train_macs, deploy_params=deploy, deploy_macs=deploy_macs
    )


def both_forms(card: WeightsCard) -> tuple[nn.Module, nn.Module]:
    """A network of the card's architecture with its blocks, and the one that it becomes; weights of chance, eval mode."""
    info = card.dataset
    shape = (len(info.classes), info.channels, info.image_size)
    with torch.random.fork_rng(devices=[]):
        trained = build_model(card.architecture, *shape, blocks=card.blocks).eval()
        state = folded_state(trained)
        deployed = build_model(card.architecture, *shape, folded=state.keys()).eval()
    return trained, deployed


def latencies(card: WeightsCard, runtime: Runtime, batches: Sequence[int] = BATCHES) -> list[Latency]:
    """The forward passes of both forms, the trained one branch by branch; the weights do not matter to the time."""
    trained, deployed = (runtime.place(model) for model in both_forms(card))
    found = []
    for batch in batches:
        with by_branches(trained):
            train = pass_time(trained, card.dataset, batch, runtime)
        deploy = pass_time(deployed, card.dataset, batch, runtime)
        found.append(Latency(batch=batch, train_ms=train, deploy_ms=deploy, ratio=train / deploy))
    return found


@torch.inference_mode()
def pass_time(model: nn.Module, info: DatasetInfo, batch: int, runtime: Runtime) -> float:
    """Milliseconds of a forward pass over `batch` images: the median over as many as fit BUDGET, within PASSES."""
    images = runtime.images(torch.zeros(batch, *info.shape))
    times: list[float] = []
    for counted in (False, True):
        spent, passes = 0.0, 0
        while passes < PASSES[0] or (spent < BUDGET / (1 if counted else 4) and passes < PASSES[1]):
            _wait(runtime)
            begin = time.perf_counter()
            with runtime.autocast():
                model(images)
            _wait(runtime)
            took = time.perf_counter() - begin
            spent, passes = spent + took, passes + 1
            if counted:
                times.append(took)
    return 1e3 * statistics.median(times)


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
