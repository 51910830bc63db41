"""The student's step of every objective with data beside plain distillation's: how many times its time and its memory."""

from __future__ import annotations

import functools
import logging
import statistics
from collections.abc import Callable, Mapping

from benchmarks.allocated import peak_bytes
from benchmarks.methods import built, noise_store, student_step
from benchmarks.settings import INFO, Options, network
from benchmarks.table import Row, Section
from benchmarks.timing import Clock, Variant, first_call, take_turns
from benchmarks.variants import set_switches
from dfkd.distillation.first_stage import Training
from dfkd.distillation.store import ImageStore
from dfkd.distillation.zoo.first_stage import FirstStage
from dfkd.errors import UserError
from dfkd.methods import ALIASES, METHODS, MethodSettings, TwoStageSettings
from dfkd.plugins import load
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime, seed_everything

logger = logging.getLogger(__name__)

PLAIN = "kd-vanilla"  # the others are held against it
FIRST_STAGE = "first stage"
Step = Callable[[], object]


def variants_of(method: str) -> dict[str, str]:
    """What is measured of a method: name → blocks of its student."""
    return {method: "plain", f"{method}, actdb": "actdb"} if method == "kdrefine" else {method: "plain"}


def objective_names() -> list[str]:
    """Every method that distils on given images, plain distillation first."""
    names = [name for name, own in METHODS.items() if own.transfer and name not in ALIASES]
    return [PLAIN, *(name for name in names if name != PLAIN)]


def settings_of(method: str, blocks: str, store: ImageStore, batch: int) -> MethodSettings:
    """The published settings, but for the size of a batch; CRD's negatives as far as the images allow them."""
    fields = METHODS[method].settings.model_fields
    values: dict[str, object] = {"batch_size": batch, "blocks": blocks}
    if "negatives" in fields:
        most = store.count - int(store.labels.bincount().max())
        values["negatives"] = min(fields["negatives"].default, most)
    return METHODS[method].settings(**values)


def first_stage_of(method: str, settings: TwoStageSettings, options: Options, runtime: Runtime) -> FirstStage:
    """The first stage of a method in two, with networks of its own."""
    seed_everything(0)
    teacher = runtime.place(network(options.teacher, seed=0).requires_grad_(False))
    student = runtime.place(network(options.student, seed=1))
    made: FirstStage = load(METHODS[method].first_stage)(teacher, student, INFO, settings, runtime)
    return made


def steps_of(method: str, options: Options, store: ImageStore, runtime: Runtime) -> dict[str, Step]:
    """A step of each variant of a method, its first stage included.

    Raises:
        UserError: the method cannot take the pair.
    """
    found: dict[str, Step] = {}
    for name, blocks in variants_of(method).items():
        settings = settings_of(method, blocks, store, options.objective_batch)
        synthesizer, objective = built(method, settings, options, runtime)
        if isinstance(settings, TwoStageSettings):
            stage = first_stage_of(method, settings, options, runtime)
            objective.start_from(stage.kept.state_dict())
            training = Training(stage, store, settings.first_lr or settings.lr, 0)
            found[f"{name}: {FIRST_STAGE}"] = functools.partial(training.step, StopRequest())
        objective.begin_epoch(settings.epochs // 2, settings.lr)
        found[name] = student_step(synthesizer, objective, store)
    return found


def timed(step: Step, runtime: Runtime) -> Variant:
    """A step as `take_turns` wants it."""

    def run(steps: int, clock: Clock) -> None:
        set_switches(runtime)
        clock.mark()
        for _ in range(steps):
            step()
            clock.mark()

    return run


def measure(options: Options) -> Section:
    """All objectives, taking turns, eager, in the fast path; the teacher's answers are not kept.

    On a CPU its own seconds count: dozens of variants lie far apart in a turn, and a machine's other work is not even.
    """
    runtime = Runtime.create("fast", options.device)
    store, steps, refused = noise_store(options.transfer_images, runtime), {}, []
    for method in objective_names():
        try:
            steps |= steps_of(method, options, store, runtime)
        except UserError as error:
            refused.append(Row(method, "no such pair", note=str(error)))
    variants = {name: timed(step, runtime) for name, step in steps.items()}
    for name, variant in variants.items():
        first_call("objectives", name, variant, runtime.device)
    memory = {name: peak_bytes(step, runtime.device) for name, step in steps.items()}
    samples = take_turns("objectives", variants, options.rounds, options.steps, runtime.device, own=True)
    title = f"Student step of the objectives with data: {options.teacher} → {options.student}, batch {options.objective_batch}"
    rows = objective_rows(samples, memory) + refused
    samples |= {f"{name}, bytes allocated at most": [float(found)] for name, found in memory.items()}
    return Section(title, rows, samples)


def objective_rows(samples: Mapping[str, list[float]], memory: Mapping[str, int]) -> list[Row]:
    """Median seconds over those of plain distillation, the quartiles of the steps likewise, and memory.

    Args:
        samples: seconds of the steps of each variant.
        memory: bytes that a step of each allocates at most.
    """
    plain = statistics.median(samples[PLAIN])
    rows = []
    for name, seconds in samples.items():
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (median,) * 3
        note = (
            f"half of {len(seconds)} steps within {low / plain:.2f} to {high / plain:.2f}; {median:.3g} s; "
            f"{memory[name] / memory[PLAIN]:.2f} × the memory, {memory[name] / 1e6:.0f} MB"
        )
        rows.append(Row(name, median / plain, f"× {PLAIN}", note=note))
    return rows
