"""What a campaign would cost on machines that are not here: `python -m benchmarks.cost --help`, docs/scaling.md.

Counted: FLOPs of a step (`benchmarks.work`). Computed: steps, bytes, what crosses between jobs. Assumed: the device's peak, the
share of it that a step reaches, how often the student sees the bank, the share of variations that the filter keeps.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer

from benchmarks.settings import INFO
from benchmarks.work import INIT_BANK, UNET, Work, work_of
from dfkd.config import check_method, check_model
from dfkd.distillation.schedule import count_syntheses, count_turns
from dfkd.errors import UserError
from dfkd.methods import METHODS, MethodSettings, SampledSettings
from dfkd.models import build_model, count_parameters
from dfkd.settings import AugmentSettings, InitBankSettings

BLOCK, PAGE, PAGE_HEADER, HEADER = 256, 4096, 16, 44  # docs/bank-format.md; a header with its checksum
SCORES = {"init": ("confidence", "label_probability", "entropy"), "variations": ("cosine", "confidence", "variation")}
COLUMNS = ("stage", "jobs", "FLOP", "GPU-hours", "stored", "moved")


@dataclass(frozen=True)
class Plan:
    """What is planned, and what is assumed."""

    methods: tuple[str, ...] = ("dda", "csd", "cmi-nonadversarial", "fastmeta")
    teacher: str = "resnet34"
    student: str = "resnet18"
    images: int = 1_281_167  # of the init bank
    size: int = 224  # pixels
    seeds: int = 3
    shards: int = 16
    passes: float = 100.0  # how many times the student sees as many images as the init bank has
    kept: float = 0.8  # share of the variations that the fidelity filter keeps
    peak: float = 989e12  # FLOP/s
    utilisation: float = 0.3  # of the peak

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.peak * self.utilisation

    @property
    def pixels(self) -> float:
        """Of an image, over those of the images that were counted."""
        return (self.size / INFO.image_size) ** 2


@dataclass(frozen=True)
class Item:
    """A stage, all of its jobs together."""

    name: str
    jobs: int
    flops: float
    stored: float  # bytes that stay
    moved: float  # bytes of its inputs and outputs: what crosses the network where nothing is shared

    def cells(self, rate: float) -> tuple[str, ...]:
        """As the table shows it."""
        hours = self.flops / rate / 3600
        return self.name, f"{self.jobs:,}", f"{self.flops:.2e}", number(hours), size(self.stored), size(self.moved)


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(value: float) -> str:
    """Bytes as MB, GB or TB."""
    for unit, bytes_of in (("TB", 1e12), ("GB", 1e9)):
        if value >= bytes_of:
            return f"{number(value / bytes_of)} {unit}"
    return f"{number(value / 1e6)} MB"


def bank_bytes(images: float, side: int, kind: str = "init", channels: int = INFO.channels) -> float:
    """Of a bank's file: blocks of 256 images with labels, parents, scores and pixels, each in whole pages of LMDB."""
    names = json.dumps(SCORES[kind], separators=(",", ":"))
    head = HEADER + -(-len(names) // 8) * 8
    record = head + BLOCK * (16 + 4 * len(SCORES[kind]) + channels * side**2)
    pages = -(-(record + PAGE_HEADER) // PAGE)
    return images / BLOCK * pages * PAGE


def weights_bytes(architecture: str, classes: int) -> int:
    """Of float32 parameters."""
    with torch.device("meta"):
        return 4 * count_parameters(build_model(architecture, classes, INFO.channels, INFO.image_size))


def stretched(settings: MethodSettings, plan: Plan) -> tuple[float, float]:
    """Syntheses and student steps of a recipe that is stretched until the student has seen `passes` banks of images."""
    syntheses = count_syntheses(settings)
    steps = count_turns(settings) - syntheses
    factor = plan.passes * plan.images / (steps * settings.batch_size)
    return syntheses * factor, steps * factor


def bank_items(plan: Plan, work: Mapping[str, Work], banks: set[str], teacher: float) -> list[Item]:
    """The init bank, its merging and page; the variations and theirs."""
    init, varied = InitBankSettings(), AugmentSettings()
    own, bank = work[INIT_BANK], bank_bytes(plan.images, plan.size)
    flops = plan.images * (init.steps * own.step + own.beside) * plan.pixels
    # the shards stay, as the bank does
    items = [
        Item("init bank: shards", plan.shards, flops, bank, plan.shards * teacher + bank),
        Item("init bank: merge, page", 2, 0.0, bank, 3 * bank + teacher),
    ]
    if "variations" in banks:
        unet, chosen = varied.bank_diffusion, plan.images * varied.share * varied.variations
        passes = 3 * unet.train_steps * unet.batch_size + chosen * math.ceil(unet.strength * unet.sampling_steps)
        made = bank_bytes(chosen, plan.size, "variations")
        flops = work[UNET].step * passes * plan.pixels
        items.append(Item("variations, page", 2, flops, made, 2 * (bank + made + teacher)))
    return items


def run_item(method: str, plan: Plan, work: Work, banks: Mapping[str, float], networks: tuple[float, float]) -> Item:
    """The runs of a method, their evaluation, pages and result."""
    settings, (teacher, student) = METHODS[method].settings(), networks
    syntheses, steps = stretched(settings, plan)
    batch = getattr(settings, "synthesis_batch_size", 0)
    made = syntheses * batch * (getattr(settings, "g_steps", 0) * work.step + work.beside)
    flops = (made + steps * settings.batch_size * work.student) * plan.pixels
    # methods that make every batch afresh keep a sample alone
    own = 0.0 if isinstance(settings, SampledSettings) else bank_bytes(syntheses * batch, plan.size)
    read = sum(banks.values())
    stored = own + 2 * student
    # own bank: written, then read by evaluation, page, pictures and result; the teacher's: by the run, evaluation, result
    moved = 2 * (teacher + read) + 5 * own + 5 * student + teacher
    return Item(method, 4 * plan.seeds + 1, plan.seeds * flops, plan.seeds * stored, plan.seeds * moved + read)


def campaign(plan: Plan, work: Mapping[str, Work], classes: int = 1000) -> list[Item]:
    """All stages, and their sum. The teacher is there."""
    networks = float(weights_bytes(plan.teacher, classes)), float(weights_bytes(plan.student, classes))
    wanted = {bank for method in plan.methods for bank in METHODS[method].banks}
    sizes = {"init": bank_bytes(plan.images, plan.size)}
    varied = AugmentSettings()
    sizes["variations"] = bank_bytes(plan.images * varied.share * varied.variations * plan.kept, plan.size, "variations")
    items = bank_items(plan, work, wanted, networks[0]) if wanted else []
    for method in plan.methods:
        banks = {bank: sizes[bank] for bank in METHODS[method].banks}
        items.append(run_item(method, plan, work[method], banks, networks))
    together = (sum(getattr(item, name) for item in items) for name in ("jobs", "flops", "stored", "moved"))
    return [*items, Item("together", *together)]  # type: ignore[arg-type]


def table(items: Sequence[Item], rate: float) -> str:
    """Markdown."""
    lines = [COLUMNS, ("---", *("---:",) * (len(COLUMNS) - 1)), *(item.cells(rate) for item in items)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def run(
    methods: Annotated[str, typer.Option(help="separated by commas")] = ",".join(Plan.methods),
    teacher: Annotated[str, typer.Option(help="architecture")] = Plan.teacher,
    student: Annotated[str, typer.Option(help="architecture")] = Plan.student,
    images: Annotated[int, typer.Option(min=1, help="of the init bank")] = Plan.images,
    image_size: Annotated[int, typer.Option(min=4, help="pixels")] = Plan.size,
    seeds: Annotated[int, typer.Option(min=1, help="students of each method")] = Plan.seeds,
    shards: Annotated[int, typer.Option(min=1, help="of the init bank")] = Plan.shards,
    passes: Annotated[float, typer.Option(help="how many times the student sees as many images as the bank has")] = Plan.passes,
    kept: Annotated[float, typer.Option(min=0, max=1, help="share of the variations that pass the filter")] = Plan.kept,
    peak: Annotated[float, typer.Option(help="FLOP/s of a GPU, from its data sheet")] = Plan.peak,
    utilisation: Annotated[float, typer.Option(help="share of the peak that a step reaches: assumed")] = Plan.utilisation,
) -> None:
    """Estimate what a campaign costs on machines that are not here."""
    chosen = tuple(check_method(name.strip()) for name in methods.split(","))
    plan = Plan(
        chosen, check_model(teacher), check_model(student), images, image_size, seeds, shards, passes, kept, peak, utilisation
    )
    print(table(campaign(plan, work_of(teacher, student, chosen)), plan.rate))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(run)
    try:
        app()
    except UserError as error:
        print(f"benchmarks.cost: {error}", file=sys.stderr)
        sys.exit(2)
