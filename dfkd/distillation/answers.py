"""The teacher's answers kept by image and view: a frozen teacher says the same of the same pixels.

An image has few training views (162 of CIFAR's, `views_of`), so that a run on a fixed set of images asks the teacher again
and again what it has said before. Answers are kept as the teacher gave them, in the precision of its logits.

**Exact** means: the student is taught by the very bits that the teacher would have given in that step. The teacher therefore
always runs on whole batches of the run's size, since the kernels that a library picks, and with them the rounding, depend on
the shape; places that a batch leaves free are filled with what the following batches will ask for. What is left is that an
answer might depend on its place in the batch or on its neighbours. Whether it does is tried when the answers are opened, on
the run's own images, and if it does none are kept. docs/teacher-cache.md says of which networks it was found to.

What is there is looked up on the CPU, where views and order are drawn: a GPU is never waited for.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dfkd.checkpoint import fingerprint
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import Views, draw_views, normalise, numbered_views, to_unit, views_of
from dfkd.distillation.answer_file import AnswerFile
from dfkd.distillation.store import ImageStore
from dfkd.errors import UserError
from dfkd.models.weights import WeightsCard
from dfkd.plugins import code_hash
from dfkd.provenance import versions
from dfkd.runtime import Runtime

logger = logging.getLogger(__name__)

DEFAULT_MB = 4000  # CIFAR-100's in float32 take 3,240
LEAST_SHARE = 0.05  # of the answers that have to come from those of the same run, for these alone to be worth their memory

Draw = tuple[torch.Tensor, Views]  # rows int64 [B] of the store and their views, on the CPU


@dataclass(frozen=True)
class CacheOptions:
    """What a user can say of the answers that are kept. It changes how long a run takes, never what it gives."""

    folder: Path | None = None  # where they lie for other runs; None: they end with the run
    limit_mb: int = DEFAULT_MB  # of memory, and of the file; 0: none are kept


class AnswerCache:
    """The teacher's logits of every training view of the images that a store holds, filled as they are asked for.

    Args:
        teacher: frozen, in eval mode.
        store: with the images that never change; all its rows are counted.
        size: images of a batch. The teacher sees no batch of another size.

    Raises:
        ValueError: what the teacher says of an image depends on the others of its batch.
    """

    def __init__(self, teacher: nn.Module, store: ImageStore, info: DatasetInfo, size: int, runtime: Runtime) -> None:
        self.teacher, self.store, self.info, self.size, self.runtime = teacher, store, info, size, runtime
        self.views, cells = views_of(info), store.count * views_of(info)
        self.queries = self.asked = 0  # images that the teacher classified, answers that were given
        self.file: AnswerFile | None = None
        self._forward = runtime.compiled(self._teacher_logits)
        sample = self._try_order()
        home = _home(cells * sample.shape[1] * sample.element_size(), runtime)
        self.table = torch.empty(cells, sample.shape[1], dtype=sample.dtype, device=home)  # touched as it is filled
        self.filled = torch.zeros(cells, dtype=torch.bool)

    def answers(self, draw: Draw, images: torch.Tensor, upcoming: Iterable[Draw]) -> torch.Tensor:
        """The teacher's logits [B,K] of a batch.

        Args:
            draw: which rows, and in which views.
            images: what the networks see of them, normalised [B,C,H,W] in the runtime's memory format.
            upcoming: the batches that will follow, as far as they are known. A wrong one costs time alone.
        """
        cells = self._cells(draw)
        self.asked += len(cells)
        if not self.filled[cells].all():
            self._ask(cells, images, upcoming)
        return self.table.index_select(0, cells.to(self.table.device)).to(self.runtime.device)

    def _cells(self, draw: Draw) -> torch.Tensor:
        rows, views = draw
        return rows * self.views + views.numbers(self.info)

    def _take(self, cells: torch.Tensor, most: int) -> torch.Tensor:
        """Those of `cells` that are not filled, each once, and mark them as being so."""
        missing = cells[~self.filled[cells]].unique()[:most]
        self.filled[missing] = True
        return missing

    def _ask(self, cells: torch.Tensor, images: torch.Tensor, upcoming: Iterable[Draw]) -> None:
        """Have the teacher answer what is missing of a batch, and as much of what follows as fits beside it."""
        wanted = self._take(cells, self.size)
        if len(wanted) == len(cells):  # nothing is known and nothing is there twice: the batch as it is
            wanted = cells
        else:
            for draw in upcoming:
                if len(wanted) == self.size:
                    break
                wanted = torch.cat([wanted, self._take(self._cells(draw), self.size - len(wanted))])
            images = self._seen(wanted[torch.arange(self.size) % len(wanted)])
        logits = self._classify(images)[: len(wanted)]
        self.table.index_copy_(0, wanted.to(self.table.device), logits.to(self.table.device))

    def _seen(self, cells: torch.Tensor) -> torch.Tensor:
        """What the networks see at these cells [B]: normalised [B,C,H,W]."""
        rows = (cells // self.views).to(self.runtime.device)
        views = numbered_views(cells % self.views, self.info).apply(self.store.images[rows], self.info)
        return self.runtime.images(normalise(to_unit(views), self.info))

    def _classify(self, images: torch.Tensor) -> torch.Tensor:
        self.queries += len(images)
        return self._forward(images)

    def _teacher_logits(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), self.runtime.autocast():
            return self.teacher(images)

    def _try_order(self) -> torch.Tensor:
        """The logits [B,K] of a batch spread over the store, after a look whether other places and neighbours change them."""
        spread = torch.linspace(0, len(self) - 1, self.size, dtype=torch.float64).long()
        order = torch.randint(self.size, (self.size,), generator=torch.Generator().manual_seed(0))  # some again, some never
        answers, again = self._classify(self._seen(spread)), self._classify(self._seen(spread[order]))
        if not torch.equal(again, answers[order.to(answers.device)]):
            raise ValueError("what the teacher says of an image depends on the others of its batch")
        return answers

    def __len__(self) -> int:
        return self.store.count * self.views

    def load(self, file: AnswerFile) -> None:
        """Take over what other runs have left, and keep for them what this one adds."""
        self.file = file
        file.read(self.filled, self.table)

    def publish(self) -> None:
        """Leave the answers to other runs, if there is where. A disk that is full costs nothing but them."""
        if self.asked:
            share = 100 * (1 - min(1.0, self.queries / self.asked))
            logger.info("%.1f %% of %s answers of the teacher were there already", share, f"{self.asked:,}")
        if self.file is not None:
            try:
                self.file.write(self.filled, self.table)
            except UserError as error:
                logger.warning("the teacher's answers are not kept for other runs: %s", error)


def open_answers(
    teacher: nn.Module,
    card: WeightsCard,
    store: ImageStore,
    draws: int,
    size: int,
    runtime: Runtime,
    options: CacheOptions,
) -> AnswerCache | None:
    """The cache for a run on the images of a store, if it pays; says in the log why not.

    Args:
        card: the teacher's.
        draws: images that the whole run will look at, each in a view.
        size: images of a batch.
    """
    if card.dataset.crop == "resized":
        logger.info("the teacher's answers are not kept: no random box is seen a second time")
        return None
    cells = store.count * views_of(card.dataset)
    if not options.limit_mb or not cells:
        return None
    share = expected_share(draws, cells)
    if options.folder is None and share < LEAST_SHARE:
        logger.info("the teacher's answers are not kept: %.1f %% of them would be asked for again", 100 * share)
        return None
    most = cells * len(card.dataset.classes) * runtime.dtype.itemsize / 1e6
    if most > options.limit_mb:
        logger.info("the teacher's answers are not kept: they take %.0f MB, --cache-mb allows %d", most, options.limit_mb)
        return None
    try:
        cache = AnswerCache(teacher, store, card.dataset, size, runtime)
    except ValueError as error:
        logger.info("the teacher's answers are not kept: %s", error)
        return None
    if options.folder is not None:
        content = identity(card, store, size, runtime)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{card.dataset.name}_{card.architecture}").strip(".")
        cache.load(AnswerFile(options.folder / f"{name}_{fingerprint(content)[:16]}", content))
    known = int(cache.filled.sum())
    logger.info("the teacher's answers are kept: %s of %s views known, %.0f MB at most", f"{known:,}", f"{cells:,}", most)
    return cache


def identity(card: WeightsCard, store: ImageStore, size: int, runtime: Runtime) -> dict[str, object]:
    """Everything that decides the bits of an answer: runs for which this is equal can have them in common."""
    images = store.images[: store.count].cpu().contiguous()
    info = card.dataset
    return {
        "teacher": card.sha256,
        "architecture": card.architecture,
        "plugin": code_hash("model", card.architecture),
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "shape": list(images.shape),
        "normalisation": [info.mean, info.std],
        "views": [info.crop_padding, info.flip],
        "batch_size": size,
        "runtime": [runtime.precision, runtime.compile, str(runtime.dtype)],
        "machine": {key: value for key, value in runtime.describe().items() if key != "energy"},
        "torch": versions()["torch"],
    }


def expected_share(draws: int, cells: int) -> float:
    """Which part of `draws` uniform draws from `cells` is expected to have come before: 0.48 for CIFAR's 240 epochs."""
    load = draws / cells
    return 1 + math.expm1(-load) / load if load else 0.0


def ahead(batches: Iterable[torch.Tensor], info: DatasetInfo) -> Iterator[Draw]:
    """The draws of the batches [B] of rows that follow, as torch's global generator, left alone, would draw their views."""
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    for rows in batches:
        yield rows, draw_views(len(rows), info, generator)


def _home(size: int, runtime: Runtime) -> torch.device:
    """Where a table of `size` bytes lies: on the device, or beside it if it would take more than a quarter of what is free."""
    if runtime.device.type == "cuda" and size > torch.cuda.mem_get_info(runtime.device)[0] // 4:
        return torch.device("cpu")
    return runtime.device
