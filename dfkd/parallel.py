"""Several processes that do one stage together, each on a device of its own: the run of one process, but for the order of sums.

Every process runs the whole stage in the same state. It draws what one process would draw for the whole batch, computes a
contiguous part of the batch, and the parts' gradients, losses and BatchNorm moments are summed. So networks, optimisers and
random states are equal in all processes at any time, and what they decide is the same. What depends on a key alone, such as a
batch of the init bank, is dealt out instead, and its bytes do not depend on the number of processes at all.

The first process alone writes; what the others write goes to a folder that is thrown away (`own_folders`).
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from dfkd import launch
from dfkd.errors import ProcessLost, UserError
from dfkd.files import file_sha256
from dfkd.locks import NAME, hold, release
from dfkd.progress import Stopped, StopRequest
from dfkd.shared_norm import Moments, share_statistics

if TYPE_CHECKING:
    from dfkd.provenance import Cost
    from dfkd.runtime import Runtime

logger = logging.getLogger(__name__)

# A process that has ended is noticed by its closed connections, or by who started it; no work is too long to be waited for.
PATIENCE = datetime.timedelta(days=7)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. In one process every method gives back what it is given, at no cost."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """The group that the environment names: of `dfkd.launch`, torchrun or accelerate; alone where it names none."""
        found = launch.place()
        if found is None:
            return cls()
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        url = f"file://{found.folder}/store" if found.folder else "env://"
        with _together():
            store, *_ = next(iter(dist.rendezvous(url, found.rank, found.world, timeout=PATIENCE)))
            dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.world, timeout=PATIENCE)
        return cls(found.rank, found.world)

    def leave(self) -> None:
        """Wait for all others and dissolve the group, at the end of a stage that all have finished."""
        if self.world > 1:
            self.agree(0)
            torch.distributed.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    # -- a batch in parts ---------------------------------------------------------------------------------------------

    def part(self, count: int) -> slice:
        """Which of `count` images are this process's.

        Raises:
            UserError: there are fewer images than processes.
        """
        if count < self.world > 1:
            raise UserError(f"a batch of {count} images is too small for {self.world} processes; run fewer (--ranks {count}).")
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def share(self, count: int) -> float:
        """Which share of `count` images that is: what a mean over the part counts in the mean over all."""
        rows = self.part(count)
        return (rows.stop - rows.start) / count

    def mine(self, values: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch [N,…]."""
        return values if self.world == 1 else values[self.part(len(values))]

    def whole(self, part: torch.Tensor, count: int, rows: slice | None = None) -> torch.Tensor:
        """All parts together, [count,…] on the device they lie on; `rows` says which this one is, if not `part(count)`."""
        if self.world == 1:
            return part
        found = part.new_zeros(count, *part.shape[1:])
        found[rows or self.part(count)] = part
        return self.sum(found)  # with zeros alone, so that no bit changes

    def gathered(self, part: torch.Tensor, share: float) -> torch.Tensor:
        """All parts of a batch together, [N,…], for what compares its images; `share` says how much of it this part is.

        Differentiable: every process has all of what is gathered, computes the same with it, and its loss counts by its share.
        """
        return part if self.world == 1 else _Gathered.apply(part, round(len(part) / share), self)

    def backward(self, loss: torch.Tensor, optimiser: torch.optim.Optimizer, share: float = 1.0) -> None:
        """Gradients of the whole batch's mean loss, from the mean over this part, in all that the optimiser trains."""
        if self.world == 1:
            loss.backward()
            return
        (loss * share).backward()
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def mean(self, values: torch.Tensor, share: float) -> torch.Tensor:
        """Means over this part → the means over the whole batch, detached."""
        return values if self.world == 1 else self.sum(values.detach() * share)

    def means(
        self, loss: torch.Tensor, terms: dict[str, torch.Tensor], share: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The same of a loss and its terms, scalars."""
        if self.world == 1:
            return loss, terms
        first, *others = self.mean(torch.stack([loss, *terms.values()]), share)
        return first, dict(zip(terms, others, strict=True))

    # -- decisions ----------------------------------------------------------------------------------------------------

    @property
    def agreement(self) -> Callable[[int], int] | None:
        """`agree`, or None where there is nobody to agree with."""
        return self.agree if self.world > 1 else None

    def agree(self, value: int) -> int:
        """The largest value of all processes: whether one of them was asked to stop, say. Nothing waits for a GPU."""
        if self.world == 1:
            return value
        found = torch.tensor(int(value))
        with _together():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def dealt(
        self, items: Sequence[Item], work: Callable[[Item], Result], stop: StopRequest, cost: Cost, runtime: Runtime
    ) -> Iterator[tuple[Item, Result, float]]:
        """`work` of each item, as many items at a time as there are processes. The first one is given all results in order.

        With each comes how many of the seconds that `cost` counts by now belong to results which are still to come. The other
        processes are given none. An error or a stop comes behind the results before it, in all processes.
        """
        for start in range(0, len(items), self.world):
            now = items[start : start + self.world]
            before = cost.seconds
            with cost.measure(runtime):
                results, failure = self._round(now, work)
            for number, (item, result) in enumerate(zip(now, results, strict=False), 1):
                yield item, result, (cost.seconds - before) * (1 - number / len(now))
            if failure is not None:
                raise failure
            if signal := self.agree(stop.signal if stop else 0):
                raise Stopped(128 + signal)

    def _round(self, items: Sequence[Item], work: Callable[[Item], Result]) -> tuple[list[Result], BaseException | None]:
        """What comes of one item for each process: results up to the first failure, and that."""
        if self.world == 1:
            return [work(items[0])], None
        result: Result | None = None
        failure: BaseException | None = None
        try:
            if self.rank < len(items):
                result = work(items[self.rank])
        except (UserError, Stopped) as error:
            failure = error
        failures: list[Any] = [None] * self.world
        results: list[Any] | None = [None] * self.world if self.first else None
        with _together():
            torch.distributed.all_gather_object(failures, failure)
            torch.distributed.gather_object(result, results)
        lost = next((number for number, found in enumerate(failures) if found is not None), len(items))
        return (results or [])[:lost], failures[lost] if lost < len(items) else None

    # -- BatchNorm ----------------------------------------------------------------------------------------------------

    def share_statistics(self, *networks: nn.Module) -> None:
        """Have the BatchNorm layers of these networks, when they train, take their statistics over the whole batch."""
        if self.world == 1:
            return
        for network in networks:
            share_statistics(network, self)

    def moments(self, variance: torch.Tensor, mean: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Biased variance [C] and mean [C] over this part, of `count` images → over the whole batch; differentiable."""
        return (variance, mean) if self.world == 1 else Moments.apply(variance, mean, count, self)

    def combine(self, variance: torch.Tensor, mean: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """The same without a graph: variance and mean over all in float64, the parts' shares [W], and what all count.

        Deviations are taken from the whole mean (Chan et al. 1979), so that no digits are lost. Every process adds the same
        numbers in the same order, and has the same bits.
        """
        table = mean.new_zeros(self.world, 2 * len(mean) + 1, dtype=torch.float64)
        table[self.rank] = torch.cat([variance.double(), mean.double(), table.new_full((1,), count)])
        variances, means, counts = self.sum(table).split([len(mean), len(mean), 1], 1)
        shares = counts / counts.sum()
        middle = (shares * means).sum(0)
        return (shares * (variances + (means - middle).square())).sum(0), middle, shares[:, 0], counts.sum()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        with _together():
            torch.distributed.all_reduce(values)
        return values


ALONE = Ranks()


class _Gathered(torch.autograd.Function):
    """See `Ranks.gathered`."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, count: int, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return ranks.whole(part, count)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """This part's rows of the sum of what all processes make of the whole."""
        return ctx.ranks.mine(ctx.ranks.sum(gradients[0].clone())), None, None


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What goes wrong between processes is that one of them is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.debug("%s", error)
        raise ProcessLost from error


@contextlib.contextmanager
def own_folders(
    ranks: Ranks, checkpoints: Path, outputs: Sequence[Path], leave_out: str = ""
) -> Iterator[tuple[Path, list[Path]]]:
    """Where this process keeps its state and writes: where it was told to, if it is the first.

    Another process gets a folder that is thrown away, and in it what lies in the first one's checkpoint folder, so that both
    begin in the same state; but for `leave_out`, a pattern of names. It logs warnings alone, with its number.

    Raises:
        UserError: the processes do not see the same folder.
    """
    if ranks.world == 1:
        yield checkpoints, list(outputs)
        return
    if ranks.first:
        hold(checkpoints)
        try:
            ranks.agree(0)  # nobody else changes it
            _check_same(ranks, checkpoints)
            yield checkpoints, list(outputs)
        except UserError:
            release(checkpoints)  # and leave no empty folder
            raise
        return
    with tempfile.TemporaryDirectory(prefix=f"rank{ranks.rank}-", dir=launch.folder()) as private, _quiet(ranks):
        ranks.agree(0)
        copy = Path(private) / "checkpoints"
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(checkpoints, copy, ignore=shutil.ignore_patterns(NAME, *filter(None, [leave_out])))
        _check_same(ranks, copy)
        yield copy, [Path(private, f"out{number}", path.name) for number, path in enumerate(outputs)]


def _check_same(ranks: Ranks, checkpoints: Path) -> None:
    """Refuse to begin from different states, which a file system that not all nodes share gives."""
    state = checkpoints / "state.pt"
    found: list[Any] = [None] * ranks.world
    with _together():
        torch.distributed.all_gather_object(found, file_sha256(state) if state.exists() else "")
    if len(set(found)) > 1:
        raise UserError(f"{checkpoints}: the processes do not all see it; choose a folder on a file system that they share.")


@contextlib.contextmanager
def _quiet(ranks: Ranks) -> Iterator[None]:
    """Log warnings alone, and say who does."""
    root = logging.getLogger()
    level = root.level

    def name(record: logging.LogRecord) -> bool:
        record.msg = f"process {ranks.rank + 1} of {ranks.world}: {record.msg}"
        return True

    root.setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.addFilter(name)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in root.handlers:
            handler.removeFilter(name)
