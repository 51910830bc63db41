"""The stage that multiplies a bank: variations by a back end, the fidelity filter, two banks and a plot."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from dfkd.bank.format import BLOCK_IMAGES, BankMeta, Block
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS
from dfkd.diffusion import fidelity
from dfkd.diffusion.backends import COST_FILE, Backend, create_backend
from dfkd.divergence import rollback_notes
from dfkd.errors import UserError
from dfkd.files import file_sha256, read_json, together, write_json
from dfkd.history import History, is_shown
from dfkd.models.weights import load_model
from dfkd.progress import progress, stop_request
from dfkd.provenance import Cost
from dfkd.runtime import Runtime, derive_seed
from dfkd.settings import AugmentSettings
from dfkd.tensorboard import Board

PARENTS = 200  # parents that are varied, judged and written together, at most


def augment(
    teacher: Path,
    bank: Path,
    settings: AugmentSettings,
    output: Path,
    rejected: Path,
    plot: Path,
    checkpoints: Path,
    runtime: Runtime,
) -> Cost:
    """Vary the images of `bank`, keep the faithful variations in `output` and put the others into `rejected`.

    A record of `output` is what became of one block of parents: the accepted variations (label and index of the parent,
    scores `cosine`, `confidence` of the teacher and `variation`), and the parents that none survives of (cosine 1,
    variation -1). The filter's report is in its metadata (`extra`) and drawn to `plot`; `<output stem>.cost.json`,
    `.history.csv` (the back end's training) and `.timing.csv` are written beside it. A killed job loses the block in
    hand, or a minute of training.

    Raises:
        UserError: the bank is of another teacher, incomplete or damaged, or the back end cannot start here.
    """
    model, card = load_model(teacher, runtime)
    info = card.dataset
    reader = BankReader(bank, teacher_sha256=card.sha256)
    source = file_sha256(bank)
    if not len(reader):
        raise UserError(f"{bank}: holds no image to vary; make the init bank again.")
    backend = create_backend(settings, info, runtime)
    judge = fidelity.Judge(model, info, settings, runtime)
    identity = {
        "stage": "augment",
        "version": STAGE_VERSIONS["augment"],
        "settings": settings.model_dump(),
        "teacher": card.sha256,
        "bank": source,
    }
    checkpoint = Checkpoint(checkpoints, identity)
    cost_file = checkpoint.folder / COST_FILE
    cost = Cost(**read_json(cost_file)) if cost_file.exists() else Cost()
    tensorboard = output.parent / "tensorboard" / output.stem
    history = History(output.with_suffix(".history.csv"), tensorboard, "step", ("lr", "loss"))
    meta = BankMeta(
        kind="variations",
        dataset=info,
        teacher_sha256=card.sha256,
        stage="augment",
        stage_version=STAGE_VERSIONS["augment"],
        settings=settings.model_dump(),
        seed=settings.seed,
        lineage=[*reader.meta.lineage, {"stage": reader.meta.stage, "images": len(reader), "sha256": source}],
        extra={"backend": settings.backend, "generator": backend.describe()},
    )
    with (
        BankWriter(checkpoint.folder / "variations.lmdb", meta) as kept,
        BankWriter(checkpoint.folder / "rejected.lmdb", meta.model_copy(update={"kind": "rejected"})) as dropped,
    ):
        chosen = choose_parents(len(reader), settings)
        if len(chosen):
            _fill(reader, chosen, settings, backend, judge, kept, dropped, checkpoint, cost, history)
        blocks = kept.reader().blocks(), dropped.reader().blocks()
        report = fidelity.report(settings.backend, settings.threshold, info.classes, *blocks)
        kept.update_meta(extra=kept.meta.extra | report | rollback_notes(checkpoint.folder))
        cost.images = report["made"]
        cost.teacher_queries = len(chosen) + report["made"]
        with together():
            fidelity.plot(report, plot)
            dropped.publish(rejected)
            kept.publish(output)
            history.publish()
            write_json(output.with_suffix(".cost.json"), {**cost.as_dict(), "hardware": runtime.describe()})
    checkpoint.remove()
    return cost


def choose_parents(count: int, settings: AugmentSettings) -> torch.Tensor:
    """Ascending indices of the `share` of `count` images that are varied, drawn by the seed; none for the back end `none`."""
    if settings.backend == "none":
        return torch.empty(0, dtype=torch.int64)
    draw = torch.Generator().manual_seed(derive_seed(settings.seed, "augment", "parents"))
    return torch.randperm(count, generator=draw)[: max(1, round(settings.share * count))].sort().values


def _fill(
    reader: BankReader,
    chosen: torch.Tensor,
    settings: AugmentSettings,
    backend: Backend,
    judge: fidelity.Judge,
    kept: BankWriter,
    dropped: BankWriter,
    checkpoint: Checkpoint,
    cost: Cost,
    history: History,
) -> None:
    """Let the back end learn, then append one block of parents after the other to both banks."""
    # a record of either bank must hold all that one block of parents can give
    size = max(1, min(PARENTS, BLOCK_IMAGES // settings.variations))
    groups = chosen.split(size)
    labels = torch.cat([block.labels for block in reader.blocks()])
    ranks = backend.runtime.ranks

    def vary(ids: torch.Tensor) -> tuple[Block, Block | None]:
        with stop.at_once():  # minutes, with a large model; nothing of the block is written yet
            return vary_block(reader.images(ids), labels[ids], ids, settings, backend, judge)

    with stop_request(ranks.agreement) as stop:
        if backend.learns:
            backend.fit(reader.load().images, labels, checkpoint, cost, stop, history)
        done = ranks.agree(resume_point(kept, dropped, settings.variations))  # the first process alone has banks
        board = Board(history.folder / "blocks", done + 1)
        with progress("augment: blocks of parents", len(groups), done) as steps, contextlib.closing(board):
            told = cost.seconds
            dealt = ranks.dealt(groups[done:], vary, stop, cost, backend.runtime)
            for number, (ids, (accepted, refused), ahead) in enumerate(dealt, start=done + 1):
                with cost.measure(backend.runtime):
                    if refused is not None:
                        dropped.append(refused)
                    kept.append(accepted)
                write_json(checkpoint.folder / COST_FILE, cost.as_dict())
                made = len(ids) * settings.variations
                figures = {"filter/accept_rate": 1 - (len(refused) if refused else 0) / made}
                board.scalars(figures | {"speed/images_per_second": made / (cost.seconds - ahead - told)}, number)
                told = cost.seconds - ahead
                if is_shown(number, len(groups)):
                    board.grid("accepted variations", accepted.images, number)
                steps.advance()


def vary_block(
    images: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    settings: AugmentSettings,
    backend: Backend,
    judge: fidelity.Judge,
) -> tuple[Block, Block | None]:
    """The accepted block (in it the parents that stand for themselves) and the rejected one, each by parent, then variation.

    Args:
        images: uint8 [n,C,H,W], the parents; `labels`, `ids`: int64 [n], their classes and their indices in their bank.
    """
    own, own_confidence = judge(images)
    count = settings.variations
    # [n, V, ...]: row by row what became of each parent
    made = torch.stack([backend.vary(images, labels, ids, variation) for variation in range(count)], dim=1).flatten(0, 1)
    embedded, confidence = judge(made)
    cosines = fidelity.cosine(embedded, own.repeat_interleave(count, 0))
    verdict = fidelity.judge(cosines.view(-1, count), settings.threshold)

    # the parent goes behind its variations, so that one mask picks what stays
    width = count + 1
    everything = Block(
        torch.cat([made.unflatten(0, (-1, count)), images[:, None]], dim=1).flatten(0, 1),
        labels.repeat_interleave(width),
        {
            "cosine": torch.cat([cosines.view(-1, count), torch.ones(len(ids), 1)], dim=1).flatten(),
            "confidence": torch.cat([confidence.view(-1, count), own_confidence[:, None]], dim=1).flatten(),
            "variation": torch.tensor([*range(count), fidelity.ITSELF], dtype=torch.float32).repeat(len(ids)),
        },
        ids.repeat_interleave(width),
    )
    nowhere = torch.zeros(len(ids), 1, dtype=torch.bool)
    stays = torch.cat([verdict.kept, verdict.itself[:, None]], dim=1).flatten()
    falls = torch.cat([~verdict.kept, nowhere], dim=1).flatten()
    return everything.select(stays), everything.select(falls) if bool(falls.any()) else None


def resume_point(kept: BankWriter, dropped: BankWriter, variations: int) -> int:
    """Number of blocks of parents that both banks have whole; what either has beyond them is cut off.

    Of a block of parents the rejected images are written first, and not at all where there are none: how many there must
    be follows from the accepted ones.
    """
    firsts = [(len(block), _parents(block)) for block in dropped.reader().blocks()]
    done = used = 0
    for block in kept.reader().blocks():
        parents = _parents(block)
        expected = len(parents) * variations - int((block.scores["variation"] != fidelity.ITSELF).sum())
        if expected:
            if used == len(firsts) or firsts[used][0] != expected or not firsts[used][1] <= parents:
                break
            used += 1
        done += 1
    kept.truncate(done)
    dropped.truncate(used)
    return done


def _parents(block: Block) -> set[int]:
    return set() if block.parents is None else set(block.parents.tolist())
