"""What grows with a bank, and what a second shard saves: `python -m benchmarks --only scaling`; docs/scaling.md has the curves.

Every measurement of a bank runs in a process of its own, forked from one that has imported torch and done nothing with it, so
that its memory is its own. The disk holds up to four copies of the largest bank meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.memory import resident
from benchmarks.methods import card_of
from benchmarks.settings import INFO, Options, network
from benchmarks.table import Row, Section
from dfkd.bank.format import BankMeta
from dfkd.bank.merge import merge_banks
from dfkd.bank.reader import BankReader
from dfkd.bank.verify import verify_bank
from dfkd.bank.writer import BankWriter
from dfkd.distillation.store import ImageStore
from dfkd.distillation.stream import BankSource, Store, StreamedStore
from dfkd.methods import MethodSettings
from dfkd.models.weights import save_weights
from dfkd.runtime import Runtime

logger = logging.getLogger(__name__)

SHARDS = 2  # that a bank is written as and merged from
PORTION = 25_600  # images that are drawn at a time
BATCH = 256
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Taken:
    """What an action took: seconds, and bytes that its process grew by at most."""

    seconds: float
    grown: int


def write_shard(path: Path, index: int, count: int) -> float:
    """Write shard `index` of `SHARDS` of a bank of `count` images of noise; seconds of appending and of publishing."""
    first, last = (count * number // SHARDS for number in (index - 1, index))
    sizes = [min(PORTION, last - start) for start in range(first, last, PORTION)]
    blocks = sum(-(-size // 256) for size in sizes)
    begun = sum(-(-min(PORTION, first - start) // 256) for start in range(0, first, PORTION))
    extra = {"shard": {"index": index, "count": SHARDS, "first_block": begun, "blocks": blocks}}
    meta = BankMeta(kind="init", dataset=INFO, teacher_sha256="0" * 64, stage="benchmark", stage_version=1, extra=extra)
    working, taken = path.with_suffix(".working"), 0.0
    torch.manual_seed(index)
    with BankWriter(working, meta, resume=False) as writer:
        for size in sizes:
            images = torch.randint(0, 256, (size, *INFO.shape), dtype=torch.uint8)
            scores = {name: torch.rand(size) for name in ("confidence", "label_probability", "entropy")}
            begin = time.perf_counter()
            writer.append_images(images, torch.randint(0, len(INFO.classes), (size,)), scores)
            taken += time.perf_counter() - begin
        begin = time.perf_counter()
        writer.publish(path)
        taken += time.perf_counter() - begin
    working.unlink()
    return taken


def merge(paths: list[Path], output: Path) -> float:
    """Seconds to gather shards in one bank."""
    begin = time.perf_counter()
    merge_banks(paths, output)
    return time.perf_counter() - begin


def verify(path: Path) -> float:
    """Seconds to check every byte; the records are read in a process of their own, whose memory does not count here."""
    begin = time.perf_counter()
    faults = verify_bank(path)
    if faults:
        raise RuntimeError(f"{path}: {faults[0]}")
    return time.perf_counter() - begin


def open_bank(path: Path) -> float:
    """Seconds until a bank has said how many images it holds, of which class."""
    begin = time.perf_counter()
    BankReader(path).labels()
    return time.perf_counter() - begin


def load(path: Path) -> float:
    """Seconds until all images are in memory, checksums compared."""
    begin = time.perf_counter()
    BankReader(path).load()
    return time.perf_counter() - begin


def sample(path: Path, streamed: bool, batches: int) -> float:
    """Seconds a batch, over so many from a shuffled pass; opening is not counted."""
    runtime, reader = Runtime.create("fast", "cpu"), BankReader(path)
    store: Store = (
        StreamedStore([BankSource(reader)], 0, INFO.shape, MethodSettings().shuffle_buffer, runtime)
        if streamed
        else ImageStore(len(reader), INFO.shape, runtime)
    )
    if isinstance(store, ImageStore):
        store.append_bank(reader)
    passes = store.passes(BATCH, "benchmark", steps=batches)
    begin = time.perf_counter()
    for step in range(batches):
        store.fetch(passes, step)  # type: ignore[arg-type]
    taken = time.perf_counter() - begin
    store.close()
    return taken / batches


def growing(action: Callable[..., float], *arguments: object) -> Taken:
    """Run an action; what this process had resident at most beyond what it had before."""
    before = resident("VmRSS")
    seconds = action(*arguments)
    return Taken(seconds, max(0, resident("VmHWM") - before))


@contextmanager
def children() -> Iterator[Callable[..., Taken]]:
    """`growing` in a fresh process at every call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        yield lambda action, *arguments: pool.submit(growing, action, *arguments).result()


def bank_curve(count: int, folder: Path, run: Callable[..., Taken], batches: int) -> dict[str, Taken]:
    """All that is done to a bank of `count` images, which is removed in the end."""
    shards = [folder / f"{count}-{index}.lmdb" for index in range(1, SHARDS + 1)]
    bank = folder / f"{count}.lmdb"
    written = [run(write_shard, path, index, count) for index, path in enumerate(shards, 1)]
    found = {"write": Taken(sum(part.seconds for part in written), max(part.grown for part in written))}
    found["merge"] = run(merge, shards, bank)
    for path in shards:
        path.unlink()
    found["verify"] = run(verify, bank)
    found["open"] = run(open_bank, bank)
    found["load"] = run(load, bank)
    steps = min(batches, max(1, count // BATCH))
    found["batch, resident"] = run(sample, bank, False, steps)
    found["batch, streamed"] = run(sample, bank, True, steps)
    bank.unlink()
    logger.info("scaling, %d images: %s", count, ", ".join(f"{name} {taken.seconds:.3g} s" for name, taken in found.items()))
    return found


def bank_section(curves: dict[int, dict[str, Taken]]) -> Section:
    """A row an action and size: seconds, and memory in the note."""
    rows, samples = [], {}
    for name in next(iter(curves.values())):
        for count, found in curves.items():
            taken = found[name]
            batch = name.startswith("batch")
            rate = "" if batch or name == "open" else f"{count / taken.seconds:,.0f} images/s; "
            value, unit = (1000 * taken.seconds, "ms") if batch else (taken.seconds, "s")
            rows.append(Row(f"{name}, {count:,} images", value, unit, note=f"{rate}grown by {taken.grown / 1e6:,.1f} MB"))
            samples[f"{name}, {count}"] = [taken.seconds]
            samples[f"{name}, {count}: bytes grown"] = [float(taken.grown)]
    return Section(f"Banks of 32×32 images of noise, batches of {BATCH}", rows, samples)


def stage(*words: str, threads: int = 1) -> subprocess.Popen[bytes]:
    """A `dfkd` command of this checkout, begun."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from dfkd.cli import main; main()", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait for all; a `RuntimeError` with the end of its output if one fails."""
    for process in processes:
        _, output = process.communicate()
        if process.returncode:
            raise RuntimeError(output.decode()[-2000:])


def shard_seconds(teacher: Path, folder: Path, shards: int, settings: dict[str, int]) -> tuple[float, float]:
    """Seconds of an init bank made as so many shards at the same time, one thread each; and of merging them.

    From the start of the processes to their end, imports included.
    """
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    banks = [folder / f"shard{index}of{shards}.lmdb" for index in range(1, shards + 1)]
    begin = time.perf_counter()
    finished(
        [
            stage(
                "init-bank", "--teacher", str(teacher), "--shard", f"{index}/{shards}", "--device", "cpu",
                "--checkpoints", str(folder / f"{bank.stem}.checkpoints"), "-o", str(bank), *given,
            )
            for index, bank in enumerate(banks, 1)
        ]
    )  # fmt: skip
    made = time.perf_counter()
    finished([stage("bank", "merge", *map(str, banks), "-o", str(folder / f"merged{shards}.lmdb"))])
    merged = time.perf_counter()
    return made - begin, merged - made


def shard_settings(options: Options) -> dict[str, int]:
    """Of the init bank that is made several times."""
    return {"batches": options.shard_batches, "batch_size": options.shard_images, "steps": options.shard_steps}


def shard_section(options: Options, folder: Path) -> Section:
    """1 and 2 shards in turns."""
    teacher = folder / "teacher" / "weights.safetensors"
    save_weights(teacher, network(options.shard_teacher, seed=0), card_of(options.shard_teacher))
    settings = shard_settings(options)
    samples: dict[str, list[float]] = {}
    for turn, shards in itertools.product(range(options.shard_rounds), (1, 2)):
        made, merged = shard_seconds(teacher, folder, shards, settings)
        samples.setdefault(f"{shards} at a time", []).append(made)
        samples.setdefault(f"merge {shards}", []).append(merged)
        logger.info("scaling, turn %d: %d shards in %.1f s, merged in %.1f s", turn + 1, shards, made, merged)
    if (folder / "merged1.lmdb").read_bytes() != (folder / "merged2.lmdb").read_bytes():
        raise RuntimeError("the banks of 1 and of 2 shards differ")
    return Section(
        f"Init bank in shards, one thread each: {options.shard_teacher}, {size_of(settings)}", shard_rows(samples), samples
    )


def rank_seconds(teacher: Path, folder: Path, ranks: int, settings: dict[str, int]) -> float:
    """Seconds of an init bank made by one job of so many processes, one thread each, imports included."""
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    bank = folder / f"ranks{ranks}.lmdb"
    begin = time.perf_counter()
    finished(
        [
            stage(
                "init-bank", "--teacher", str(teacher), "--ranks", str(ranks), "--device", "cpu",
                "--checkpoints", str(folder / f"{bank.stem}.checkpoints"), "-o", str(bank), *given,
            )
        ]
    )  # fmt: skip
    return time.perf_counter() - begin


def rank_section(options: Options, folder: Path) -> Section:
    """One job of 1 and of 2 processes in turns; the teacher is the one that `shard_section` has left."""
    teacher, settings = folder / "teacher" / "weights.safetensors", shard_settings(options)
    samples: dict[str, list[float]] = {}
    for turn, ranks in itertools.product(range(options.shard_rounds), (1, 2)):
        samples.setdefault(f"{ranks} ranks", []).append(rank_seconds(teacher, folder, ranks, settings))
        logger.info("scaling, turn %d: %d ranks in %.1f s", turn + 1, ranks, samples[f"{ranks} ranks"][-1])
    title = f"Init bank in one job, one thread a process: {options.shard_teacher}, {size_of(settings)}"
    return Section(title, rank_rows(samples), samples)


def rank_rows(samples: dict[str, list[float]]) -> list[Row]:
    """Medians, and how many times as fast two are."""
    one, two = (statistics.median(samples[f"{ranks} ranks"]) for ranks in (1, 2))
    every = {name: ", ".join(f"{seconds:.1f}" for seconds in found) for name, found in samples.items()}
    return [
        Row("1 rank", one, "s", note=f"imports included; all turns: {every['1 ranks']}"),
        Row("2 ranks", two, "s", note=f"all turns: {every['2 ranks']}"),
        Row("2 ranks / 1 rank", one / two, "×", "≤ 2"),
    ]


def size_of(settings: dict[str, int]) -> str:
    return "{batches} batches of {batch_size}, {steps} steps".format(**settings)


def shard_rows(samples: dict[str, list[float]]) -> list[Row]:
    """Medians, and how many times as fast two are."""
    one, two = (statistics.median(samples[f"{shards} at a time"]) for shards in (1, 2))
    every = {name: ", ".join(f"{seconds:.1f}" for seconds in found) for name, found in samples.items()}
    return [
        Row("1 shard", one, "s", note=f"imports included; all turns: {every['1 at a time']}"),
        Row("2 shards at the same time", two, "s", note=f"all turns: {every['2 at a time']}"),
        Row("2 shards / 1 shard", one / two, "×", "≤ 2", "the same bank, byte for byte"),
        Row(
            "merge of 2 shards", statistics.median(samples["merge 2"]), "s", note="start of the process and imports, most of it"
        ),
    ]


def measure(options: Options, folder: Path) -> list[Section]:
    """Banks of every size, then shards, then ranks."""
    with children() as run:
        curves = {count: bank_curve(count, folder, run, options.sampled_batches) for count in options.bank_sizes}
    return [bank_section(curves), shard_section(options, folder), rank_section(options, folder)]
