"""What several processes are asked to do together; as a program, `shared_batch.py FOLDER PROCESSES`, keeps what each found."""

import copy
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.divergence import Divergence
from dfkd.errors import UserError
from dfkd.launch import launch
from dfkd.models import build_model
from dfkd.parallel import ALONE
from dfkd.progress import Stopped, StopRequest
from dfkd.provenance import Cost
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import BatchStatistics

IMAGES = 7  # of a batch: no number of processes divides it


def network():
    """BatchNorm of every kind: 2d and 1d, with and without weights, exponential and cumulative."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3, affine=False, momentum=None), nn.Tanh(),
        nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Linear(5, 3),
    ).double()  # fmt: skip


def trained(ranks):
    """Three steps on batches of seven; everything that one process would have afterwards, and the gradients of the images."""
    torch.manual_seed(0)
    net = network()
    names = list(net.state_dict())
    ranks.share_statistics(net)
    assert list(net.state_dict()) == names
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in copy.deepcopy(net)) == 2
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    found, share = {}, ranks.share(IMAGES)
    for step in range(3):
        whole, labels = torch.randn(IMAGES, 2, 6, 6, dtype=torch.float64) + 3, torch.randint(3, (IMAGES,))
        images = ranks.mine(whole).clone().requires_grad_()
        loss = F.cross_entropy(net(images), ranks.mine(labels))
        optimiser.zero_grad()
        ranks.backward(loss, optimiser, share)
        found |= {f"gradient {step} {name}": value.grad.clone() for name, value in net.named_parameters()}
        optimiser.step()
        found[f"images {step}"] = ranks.whole(images.grad, IMAGES)
        found[f"loss {step}"] = ranks.mean(loss.detach(), share)
    return found | net.state_dict() | {"evaluated": net.eval()(whole).detach()}


def statistics_term(ranks):
    """R_bn of a batch, and its gradient at the images."""
    torch.manual_seed(1)
    teacher = build_model("wrn101", 3, 1, 8)
    teacher.train()(torch.randn(32, 1, 8, 8))
    teacher.eval().requires_grad_(False)
    images = ranks.mine(torch.rand(IMAGES, 1, 8, 8)).clone().requires_grad_()
    statistics = BatchStatistics(teacher, ranks=ranks)
    with statistics.recording():
        teacher(images)
    loss = statistics.loss()
    (loss * ranks.share(IMAGES)).backward()
    return {"loss": loss.detach(), "gradient": ranks.whole(images.grad, IMAGES)}


def dealt(runtime, count, lost=None, stopped=None):
    """What comes of `count` items of which one fails, or in whose middle this process is asked to stop."""
    stop, came, cost = StopRequest(), [], Cost()

    def work(item):
        if item == lost:
            raise Divergence("work", item, "loss")
        if item == stopped:
            stop.signal = 15
        return item * item

    try:
        for item, result, ahead in runtime.ranks.dealt(range(count), work, stop, cost, runtime):
            assert 0 <= ahead <= cost.seconds
            came.append((item, result))
    except (Divergence, Stopped) as error:
        return came, str(error)
    return came, ""


def refused(ranks):
    try:
        ranks.part(ranks.world - 1)
    except UserError as error:
        return str(error)


def main(folder, processes):
    launch(processes, "cpu")
    runtime = Runtime.create_shared("reference", "cpu", compile=True)
    ranks = runtime.ranks
    found = {
        "rank": (ranks.rank, ranks.world, runtime.describe().get("ranks")),
        "trained": trained(ranks),
        "term": statistics_term(ranks),
        "bytes": ranks.whole(ranks.mine(torch.arange(2 * IMAGES, dtype=torch.uint8).view(IMAGES, 2) + 200), IMAGES),
        "agreed": ranks.agree(10 * ranks.rank),
        "dealt": dealt(runtime, 8),
        "lost": dealt(runtime, 8, lost=4),
        "stopped": dealt(runtime, 8, stopped=1),
        "small": refused(ranks),
    }
    torch.save(found, Path(folder, f"rank{ranks.rank}.pt"))
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    assert ALONE.agree(3) == 3
