"""Resident and streamed images: batches alone, and student steps on them."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.bank import bank_path, make_bank
from benchmarks.settings import INFO, Options, network
from benchmarks.table import Row, Section
from benchmarks.timing import Clock, Variant, first_call, take_turns
from dfkd.bank.reader import BankReader
from dfkd.datasets.views import normalise, random_views, to_unit
from dfkd.distillation.kd import KD
from dfkd.distillation.objective import Batch
from dfkd.distillation.store import ImageStore
from dfkd.distillation.stream import BankSource, Store, StreamedStore
from dfkd.methods import MethodSettings
from dfkd.runtime import Runtime

BUFFER = MethodSettings().shuffle_buffer
RESIDENT, STREAMED = "resident", "streamed"


def opened(name: str, path: Path, buffer: int, runtime: Runtime) -> Store:
    """A store of all images of a bank."""
    reader = BankReader(path)
    if name == STREAMED:
        return StreamedStore([BankSource(reader)], 0, INFO.shape, buffer, runtime)
    store = ImageStore(len(reader), INFO.shape, runtime)
    store.append_bank(reader)
    return store


def pass_seconds(store: Store, batch: int, number: int, runtime: Runtime) -> float:
    """Seconds of a pass over all images in batches, with nothing done to them."""
    steps = store.count // batch
    passes = store.passes(batch, "benchmark", number, steps=steps)
    begin = time.perf_counter()
    for step in range(steps):
        store.fetch(passes, step)  # type: ignore[arg-type]
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def student_steps(store: Store, options: Options, runtime: Runtime) -> Variant:
    """Steps of plain distillation."""
    settings = MethodSettings(batch_size=options.student_batch, lr=1e-3)
    teacher = runtime.place(network(options.teacher, seed=0).requires_grad_(False))
    objective = KD(teacher, runtime.place(network(options.student, seed=1)), INFO, settings, runtime)
    passes = store.passes(options.student_batch, "benchmark steps")
    done = 0

    def run(steps: int, clock: Clock) -> None:
        nonlocal done
        clock.mark()
        for step in range(done, done + steps):
            found = store.fetch(passes, step)  # type: ignore[arg-type]
            images = runtime.images(normalise(to_unit(random_views(found.images, INFO)), INFO))
            objective.step(Batch(images, found.labels, found.rows))
            clock.mark()
        done += steps

    return run


def measure(options: Options, folder: Path) -> Section:
    """The large bank in `folder`, which is made if it is not there, both ways in turns."""
    runtime, count, batch = Runtime.create("fast", options.device), options.large_bank, options.student_batch
    path = bank_path(folder, count)
    if not path.exists():
        make_bank(path, count)
    samples: dict[str, list[float]] = {f"{name}: a pass": [] for name in (RESIDENT, STREAMED)}
    kept = {name: opened(name, path, BUFFER, runtime) for name in (RESIDENT, STREAMED)}
    for number in range(options.rounds):
        for name, store in kept.items():
            samples[f"{name}: a pass"].append(pass_seconds(store, batch, number, runtime))
    kept[STREAMED].close()
    # windows of two batches, so that one is read every other step
    kept[STREAMED] = opened(STREAMED, path, 2 * batch, runtime)
    variants = {name: student_steps(store, options, runtime) for name, store in kept.items()}
    for name, variant in variants.items():
        first_call("stream", name, variant, runtime.device)
    steps = take_turns("stream", variants, options.rounds, options.steps, runtime.device)
    samples |= {f"{name}: a step": found for name, found in steps.items()}
    images = count // batch * batch
    alone = {name: images / statistics.median(samples[f"{name}: a pass"]) for name in kept}
    trained = {name: batch / statistics.mean(samples[f"{name}: a step"]) for name in kept}
    rows = [Row(f"batches alone, {name}", rate, "images/s") for name, rate in alone.items()]
    share = alone[STREAMED] / alone[RESIDENT]
    rows.append(Row("batches alone, streamed / resident", share, "×", note="no step to read windows behind"))
    rows += [Row(f"student steps, {name}", rate, "images/s") for name, rate in trained.items()]
    note = f"a window every other step; {options.teacher} → {options.student}"
    rows.append(Row("student steps, streamed / resident", trained[STREAMED] / trained[RESIDENT], "×", "≥ 0.95", note))
    kept[STREAMED].close()
    return Section(f"Streamed and resident images: {count:,} of 32×32, batch {batch}, buffer {BUFFER:,}", rows, samples)
