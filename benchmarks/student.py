"""DDA's student step: batch from the bank, student and aligner, then the head."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks import reference
from benchmarks.flops import student_flops
from benchmarks.peak import Peaks
from benchmarks.settings import INFO, Options, network
from benchmarks.table import Section
from benchmarks.timing import Clock, Variant, first_call, take_turns
from benchmarks.variants import ORIGINAL, runtimes, set_switches, step_rows
from dfkd.datasets.views import normalise, random_views, to_unit
from dfkd.distillation.csd import CSDObjective
from dfkd.distillation.objective import Batch
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.methods import DDASettings
from dfkd.runtime import Runtime, seed_everything


def ours(
    teacher: nn.Module,
    student: nn.Module,
    settings: DDASettings,
    runtime: Runtime,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> Variant:
    """The package's step on images that lie on the device."""
    store = ImageStore(len(images), INFO.shape, runtime)
    store.append(images, labels)
    frozen = runtime.place(copy.deepcopy(teacher).requires_grad_(False))
    objective = CSDObjective(frozen, runtime.place(copy.deepcopy(student)), INFO, settings, runtime)
    order = ShuffledPasses(len(images), settings.batch_size, "benchmark")

    def run(steps: int, clock: Clock) -> None:
        set_switches(runtime)
        seed_everything(0)
        clock.mark()
        for step in range(steps):
            index = order.batch(step).to(runtime.device)
            views = random_views(store.images[index], INFO)
            objective.step(Batch(runtime.images(normalise(to_unit(views), INFO)), store.labels[index], index))
            clock.mark()

    return run


def measure(options: Options, peaks: Peaks) -> Section:
    """All variants, taking turns."""
    teacher, student = network(options.teacher, seed=0), network(options.student, seed=1)
    settings = DDASettings(batch_size=options.student_batch, lr=1e-3)
    images = torch.randint(0, 256, (options.store, *INFO.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(INFO.classes), (options.store,))
    chosen = runtimes(options)
    device = next(iter(chosen.values())).device
    with tempfile.TemporaryDirectory(prefix="dfkd-benchmark-") as name:
        folder = Path(name)
        reference.write_pngs(folder, images, labels)
        distillation = reference.OriginalDistillation(teacher, student, INFO, settings, device)

        def original(steps: int, clock: Clock) -> None:
            reference.set_switches()
            seed_everything(0)
            distillation.run(folder, steps, options.workers, clock)

        variants: dict[str, Variant] = {ORIGINAL: original}
        variants |= {name: ours(teacher, student, settings, runtime, images, labels) for name, runtime in chosen.items()}
        first = {name: first_call("student", name, variant, device) for name, variant in variants.items()}
        samples = take_turns("student", variants, options.rounds, options.steps, device)
    flops = student_flops(teacher, student)
    rows = step_rows(samples, first, options.student_batch, flops, peaks, "≥ 5 on a CPU with AMX", "")
    return Section(f"Student step of DDA: {options.teacher} → {options.student}, batch {options.student_batch}", rows, samples)
