"""The init bank: batches inverted from the teacher alone, each from a seed of its own.

CSD's and DDA's bank initialisation (their `csd: 0`): 400 batches × 200 images × 500 steps for CIFAR by default.
"""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from dfkd.bank.format import BLOCK_IMAGES, FORMAT_VERSION, BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint
from dfkd.config import STAGE_VERSIONS
from dfkd.divergence import check_terms, rollback_notes, slowed
from dfkd.errors import UserError
from dfkd.files import together, write_json
from dfkd.history import History
from dfkd.models.weights import load_model
from dfkd.progress import progress, stop_request
from dfkd.provenance import Cost
from dfkd.runtime import Runtime, seed_everything
from dfkd.settings import InitBankSettings
from dfkd.synthesis.inversion import GeneratorInversion
from dfkd.synthesis.synthesizer import Synthesis

logger = logging.getLogger(__name__)


def shard_range(batches: int, index: int, count: int) -> range:
    """The batches of shard `index` (1-based) of `count`: contiguous, sizes differing by at most one."""
    if not 1 <= index <= count:
        raise UserError(f"shard {index}/{count}: the first number must lie between 1 and the second.")
    return range(batches * (index - 1) // count, batches * index // count)


def init_bank(
    teacher: Path,
    settings: InitBankSettings,
    output: Path,
    checkpoints: Path,
    runtime: Runtime,
    shard: tuple[int, int] = (1, 1),
) -> Cost:
    """Invert the batches of one shard into the bank `output`.

    Batch b depends on (seed, b) alone: any number of shards or processes gives the same images. Every finished batch is safe
    in the working bank below `checkpoints`; a killed job loses the batch in hand. Writes `<output stem>.cost.json`,
    `.history.csv` (the terms of each batch's kept iterate) and `.timing.csv` beside it.

    Raises:
        UserError: the teacher has no BatchNorm layers, or cannot be read.
    """
    model, card = load_model(teacher, runtime)
    info = card.dataset
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        raise UserError(f"{teacher}: inversion needs BatchNorm layers; {card.architecture} has none.")
    batches = shard_range(settings.batches, *shard)
    identity = {
        "stage": "init-bank",
        "version": STAGE_VERSIONS["init-bank"],
        "settings": settings.model_dump(),
        "teacher": card.sha256,
        "shard": shard,
    }
    checkpoint = Checkpoint(checkpoints, identity)
    chosen, settings = settings, slowed(settings, checkpoint.folder)
    state = checkpoint.load() or {}
    cost = Cost(**state.get("cost", {}))
    history = History(
        output.with_suffix(".history.csv"),
        output.parent / "tensorboard" / output.stem,
        "batch",
        ("lr", "g_loss", "g_bn", "g_oh"),
    )
    history.load_state(state)
    records = -(-settings.batch_size // BLOCK_IMAGES)
    meta = BankMeta(
        format_version=FORMAT_VERSION,
        kind="init",
        dataset=info,
        teacher_sha256=card.sha256,
        stage="init-bank",
        stage_version=STAGE_VERSIONS["init-bank"],
        settings=chosen.model_dump(),
        seed=settings.seed,
        lineage=[{"stage": "teacher", "architecture": card.architecture, "sha256": card.sha256}],
        extra={
            "shard": {
                "index": shard[0],
                "count": shard[1],
                "first_block": batches.start * records,
                "blocks": len(batches) * records,
            },
            **rollback_notes(checkpoint.folder),
        },
    )
    inversion = GeneratorInversion(
        model,
        info,
        runtime,
        batch_size=settings.batch_size,
        steps=settings.steps,
        lr=settings.lr,
        latent_size=settings.latent_size,
        generator=settings.generator,
        width=settings.width,
        bn=settings.bn,
        oh=settings.oh,
    )

    def make(batch: int) -> Synthesis:
        seed_everything(settings.seed, "init-bank", batch)
        made = inversion.synthesize(stop)
        check_terms(f"init bank, batch {batch + 1}", settings.steps - 1, made.terms)
        return made

    with BankWriter(checkpoint.folder / "bank.lmdb", meta) as bank, stop_request(alone=runtime.ranks.world == 1) as stop:
        done = min(bank.blocks // records, len(history.rows))  # a batch is in the bank before its figures are saved
        bank.truncate(done * records)
        history.truncate(done)
        done = runtime.ranks.agree(done)  # the first process alone has them
        with progress("init bank: batches", len(batches), done) as steps:
            for batch, made, ahead in runtime.ranks.dealt(batches[done:], make, stop, cost, runtime):
                with cost.measure(runtime):
                    bank.append_images(made.images, made.labels, made.scores)
                cost.images += made.count
                cost.optimiser_steps += made.optimiser_steps
                cost.teacher_queries += made.teacher_queries
                row = {"batch": batch + 1, "lr": settings.lr} | {f"g_{name}": value for name, value in made.terms.items()}
                history.append(row, cost.seconds - ahead, made.count)
                if history.shows(len(batches)):
                    history.show("synthesised", made.images)
                checkpoint.save({"cost": cost.as_dict(), **history.state()})
                steps.advance(note="  ".join(f"{name} {value:.3f}" for name, value in made.terms.items()))
        with together():
            with stop.at_once():
                bank.publish(output)
            history.publish()
            write_json(output.with_suffix(".cost.json"), {**cost.as_dict(), "hardware": runtime.describe()})
    checkpoint.remove()
    return cost
