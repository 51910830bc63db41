"""Every method at its published budget: seconds of a synthesis and of a student step, and hours of the whole recipe."""

from __future__ import annotations

import copy
import itertools
import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.settings import INFO, LATENT_SIZE, Options, network
from benchmarks.table import Row, Section
from benchmarks.timing import Clock
from benchmarks.variants import set_switches
from dfkd.datasets.views import normalise, random_views, to_unit
from dfkd.distillation.objective import Batch, Objective
from dfkd.distillation.run import build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, rate_at
from dfkd.distillation.store import ImageStore
from dfkd.methods import ALIASES, METHODS, MethodSettings
from dfkd.models.weights import WeightsCard
from dfkd.runtime import Runtime, seed_everything
from dfkd.settings import InitBankSettings
from dfkd.synthesis.inversion import GeneratorInversion
from dfkd.synthesis.synthesizer import FreshSynthesizer, Synthesizer

logger = logging.getLogger(__name__)

TIMED = (1, 2)  # generator steps of the two syntheses from which a longer one is extrapolated
INIT_BANK = "init bank"


@dataclass(frozen=True)
class Budget:
    """What a recipe takes, in seconds."""

    synthesis: float
    syntheses: int
    steps: int  # generator steps of a synthesis; 0: none
    student: float
    student_steps: int
    before: float = 0.0  # the init bank, for methods that start from one

    @property
    def hours(self) -> float:
        return (self.before + self.synthesis * self.syntheses + self.student * self.student_steps) / 3600

    def note(self) -> str:
        made = f"synthesis {self.synthesis:.3g} s × {self.syntheses:,}" if self.steps else "no synthesis"
        if self.steps > max(TIMED):
            made += f" (from {' and '.join(map(str, TIMED))} of its {self.steps} steps)"
        taught = f", student step {self.student:.3g} s × {self.student_steps:,}" if self.student_steps else ""
        return made + taught + (f", after {self.before / 3600:.3g} h of init bank" if self.before else "")


def published(method: str, batch: int | None) -> MethodSettings:
    """The default settings, at another batch size if one is given."""
    settings = METHODS[method].settings
    if batch is None:
        return settings()
    wanted = {
        "batch_size": batch,
        "synthesis_batch_size": batch,
        "bank_size": 4 * batch,
        "bank_sample": batch,
        "queue": 4 * batch,
    }
    return settings(**{name: value for name, value in wanted.items() if name in settings.model_fields})


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of one call: the median of some, after one to warm up."""
    run()
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        run()
        clock.mark()
    return statistics.median(clock.intervals())


def _of_synthesis(time_of: Callable[[int], float], steps: int) -> float:
    """Seconds of a synthesis of so many steps, extrapolated from short ones where it is long."""
    if steps <= max(TIMED):
        return time_of(steps)
    short, long = (time_of(few) for few in TIMED)
    step = (long - short) / (TIMED[1] - TIMED[0])
    return short + (steps - TIMED[0]) * step


def card_of(architecture: str) -> WeightsCard:
    """The card of a teacher that nobody trained."""
    return WeightsCard(
        architecture=architecture, dataset=INFO, role="teacher", stage="teacher", stage_version=1, settings={}, seed=0
    )


def built(method: str, settings: MethodSettings, options: Options, runtime: Runtime) -> tuple[Synthesizer, Objective]:
    """The halves of a method, with networks of its own."""
    seed_everything(0)
    teacher = runtime.place(network(options.teacher, seed=0).requires_grad_(False))
    student = runtime.place(network(options.student, seed=1, blocks=settings.blocks))
    return build_method(method, teacher, student, card_of(options.teacher), settings, runtime)


def noise_store(count: int, runtime: Runtime) -> ImageStore:
    """So many images of noise on the device, as many of each class."""
    store = ImageStore(count, INFO.shape, runtime)
    labels = torch.arange(count) % len(INFO.classes)
    store.append(torch.randint(0, 256, (count, *INFO.shape), dtype=torch.uint8), labels)
    return store


def student_step(synthesizer: Synthesizer, objective: Objective, store: ImageStore) -> Callable[[], None]:
    """A step of the student, on fresh images if the method makes those, else on random views of the store's."""
    objective.begin(store)
    size, runtime = objective.settings.batch_size, objective.runtime
    order = store.passes(size, "benchmark")
    numbers = itertools.count()

    def step() -> None:
        if isinstance(synthesizer, FreshSynthesizer):
            objective.step(Batch(runtime.images(synthesizer.batch(size)), torch.empty(0, dtype=torch.int64)))
            return
        found = store.fetch(order, next(numbers))
        views = normalise(to_unit(random_views(found.images, INFO)), INFO)
        objective.step(Batch(runtime.images(views), found.labels, found.rows))

    return step


def measure_method(method: str, options: Options, runtime: Runtime, before: float) -> Budget:
    """Time one method, half way through its recipe: what is switched on by then is on."""
    settings = published(method, options.method_batch)
    epoch = max(settings.epochs // 2, settings.warmup)
    set_switches(runtime)
    steps: int = getattr(settings, "g_steps", 0)

    def synthesis(count: int) -> float:
        synthesizer, objective = built(method, settings.model_copy(update={"g_steps": count}), options, runtime)
        objective.begin_epoch(epoch, rate_at(settings, epoch))
        return seconds(lambda: synthesizer.synthesize(epoch), runtime.device, options.steps)

    made = _of_synthesis(synthesis, steps) if steps else 0.0
    synthesizer, objective = built(method, settings, options, runtime)
    objective.begin_epoch(epoch, 1e-3)
    student = seconds(student_step(synthesizer, objective, noise_store(options.store, runtime)), runtime.device, options.steps)
    syntheses = count_syntheses(settings)
    budget = Budget(
        made, syntheses, steps, student, count_turns(settings) - syntheses, before if METHODS[method].banks else 0.0
    )
    logger.info("methods, %s: %.3g h (%s)", method, budget.hours, budget.note())
    return budget


def init_bank(options: Options, runtime: Runtime) -> Budget:
    """The default init bank."""
    settings = InitBankSettings()
    teacher = runtime.place(copy.deepcopy(network(options.teacher, seed=0)).requires_grad_(False))
    set_switches(runtime)

    def synthesis(count: int) -> float:
        inversion = GeneratorInversion(
            teacher, INFO, runtime, batch_size=options.method_batch or settings.batch_size, steps=count, lr=settings.lr,
            latent_size=LATENT_SIZE, generator=settings.generator, width=settings.width, bn=settings.bn, oh=settings.oh,
        )  # fmt: skip
        return seconds(inversion.synthesize, runtime.device, options.steps)

    return Budget(_of_synthesis(synthesis, settings.steps), settings.batches, settings.steps, 0.0, 0)


def measure(options: Options) -> Section:
    """One row a method, eager, in the fast path; variations by diffusion and the teacher's training are not counted."""
    runtime = Runtime.create("fast", options.device)
    bank = init_bank(options, runtime)
    budgets = {INIT_BANK: bank}
    for method, own in METHODS.items():
        if method not in ALIASES and not own.transfer:
            budgets[method] = measure_method(method, options, runtime, bank.hours * 3600)
    rows = [Row(name, budget.hours, "h", "", budget.note()) for name, budget in budgets.items()]
    samples = {f"{name}: synthesis, student step": [budget.synthesis, budget.student] for name, budget in budgets.items()}
    return Section(f"Whole recipes at the published budgets, estimated: {options.teacher} → {options.student}", rows, samples)
