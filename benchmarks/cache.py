"""The student's step on images that do not change, with the teacher's answers kept and without."""

from __future__ import annotations

import copy
import statistics

import torch
from torch import nn

from benchmarks.settings import INFO, Options, network
from benchmarks.table import Row, Section
from benchmarks.timing import Clock, Variant, first_call, take_turns
from benchmarks.variants import set_switches
from dfkd.datasets.views import draw_views, normalise, to_unit
from dfkd.distillation.answers import AnswerCache, ahead, expected_share
from dfkd.distillation.objective import Batch
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.distillation.zoo.vanilla import Vanilla
from dfkd.methods import VanillaSettings
from dfkd.runtime import Runtime, seed_everything

OFF, HITS, MISSES = "answers not kept", "kept, all known", "kept, none known"
CIFAR_DRAWS = 240 * 782 * 64  # of the published recipe, from 162 views of 50,000 images
CIFAR_CELLS = 162 * 50_000


def variant(teacher: nn.Module, student: nn.Module, name: str, options: Options, images: torch.Tensor) -> Variant:
    """The package's step as `Run` takes it; of OFF, HITS, MISSES the one that is named."""
    runtime = Runtime.create("fast", options.device)
    store = ImageStore(len(images), INFO.shape, runtime)
    store.append(images, torch.arange(len(images)) % len(INFO.classes))
    frozen = runtime.place(copy.deepcopy(teacher).requires_grad_(False))
    settings = VanillaSettings(batch_size=options.student_batch, lr=1e-3)
    objective = Vanilla(frozen, runtime.place(copy.deepcopy(student)), INFO, settings, runtime)
    size, cache = settings.batch_size, None

    def run(steps: int, clock: Clock) -> None:
        nonlocal cache
        set_switches(runtime)
        if name != OFF and cache is None:
            cache = AnswerCache(frozen, store, INFO, size, runtime)
        if cache is not None:
            cache.filled[:] = name == HITS  # what stands in the table does not change how long a step takes
        seed_everything(0)
        order, later = (ShuffledPasses(len(images), size, "benchmark") for _ in range(2))
        clock.mark()
        for step in range(steps):
            rows, views = order.batch(step), draw_views(size, INFO)
            index = rows.to(runtime.device)
            seen = runtime.images(normalise(to_unit(views.apply(store.images[index], INFO)), INFO))
            batch = Batch(seen, store.labels[index], index)
            if cache is not None:
                following = ahead((later.batch(number) for number in range(step + 1, steps)), INFO)
                batch = batch._replace(answers=cache.answers((rows, views), seen, following))
            objective.step(batch)
            clock.mark()

    return run


def measure(options: Options) -> Section:
    """The three variants, taking turns."""
    teacher, student = network(options.teacher, seed=0), network(options.student, seed=1)
    images = torch.randint(0, 256, (options.store, *INFO.shape), dtype=torch.uint8)
    variants = {name: variant(teacher, student, name, options, images) for name in (OFF, HITS, MISSES)}
    device = Runtime.create("fast", options.device).device
    for name, own in variants.items():
        first_call("cache", name, own, device)
    samples = take_turns("cache", variants, options.rounds, options.steps, device)
    title = f"Student step of kd-vanilla: {options.teacher} → {options.student}, batch {options.student_batch}"
    return Section(title, cache_rows(samples, options.student_batch), samples)


def cache_rows(samples: dict[str, list[float]], batch: int) -> list[Row]:
    """Rates, ratios, and what they come to over the published recipe."""
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    rows = [
        Row(name, batch / seconds, "image-steps/s", note=f"median of {len(samples[name])} steps: {seconds:.3g} s")
        for name, seconds in medians.items()
    ]
    share = expected_share(CIFAR_DRAWS, CIFAR_CELLS)
    mixed = share * medians[HITS] + (1 - share) * medians[MISSES]
    note = f"from the above: {100 * share:.0f} % of 240 epochs' answers on 50,000 images are known by then"
    return [
        *rows,
        Row(f"{HITS} / {OFF}", medians[OFF] / medians[HITS], "×", "", "every further run of this teacher"),
        Row(f"{MISSES} / {OFF}", medians[OFF] / medians[MISSES], "×", "≥ 0.97", "what looking up costs where it is in vain"),
        Row("a first run of 240 epochs / not kept", medians[OFF] / mixed, "×", "", note),
    ]
