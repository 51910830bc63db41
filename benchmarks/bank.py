"""The image bank: writing, publishing, loading."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from benchmarks.settings import INFO, Options
from benchmarks.table import Row, Section
from dfkd.bank.format import BLOCK_IMAGES, BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter

logger = logging.getLogger(__name__)


def make_bank(path: Path, count: int) -> tuple[float, float]:
    """Write a bank of noise; seconds of appending (every block flushed to the disk) and of publishing."""
    images = torch.randint(0, 256, (count, *INFO.shape), dtype=torch.uint8)
    labels = torch.randint(0, len(INFO.classes), (count,))
    scores = {name: torch.rand(count) for name in ("confidence", "label_probability", "entropy")}
    meta = BankMeta(kind="init", dataset=INFO, teacher_sha256="0" * 64, stage="benchmark", stage_version=1)
    working = path.with_suffix(".working")
    begin = time.perf_counter()
    with BankWriter(working, meta, resume=False) as writer:
        writer.append_images(images, labels, scores)
        appended = time.perf_counter()
        writer.publish(path)
    published = time.perf_counter()
    working.unlink()
    logger.info("bank of %d images: appended in %.2f s, published in %.2f s", count, appended - begin, published - appended)
    return appended - begin, published - appended


def load_seconds(path: Path, repeats: int) -> list[float]:
    """Seconds to open a bank and load all of it, checksums verified; each repeat from scratch, the file in the page cache."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        BankReader(path).load()
        found.append(time.perf_counter() - begin)
    logger.info("loaded %s in %s s", path.name, ", ".join(f"{seconds:.2f}" for seconds in found))
    return found


def bank_path(folder: Path, count: int) -> Path:
    """Where the bank of so many images lies while the benchmark runs."""
    return folder / f"{count}.lmdb"


def measure(options: Options, folder: Path) -> Section:
    """Both sizes, written and loaded; the files stay in `folder`."""
    rows: list[Row] = []
    samples: dict[str, list[float]] = {}
    for count in (options.small_bank, options.large_bank):
        appended, published = make_bank(bank_path(folder, count), count)
        loads = load_seconds(bank_path(folder, count), options.loads)
        samples |= {f"load {count}": loads, f"append {count}": [appended], f"publish {count}": [published]}
        size = bank_path(folder, count).stat().st_size / 1e6
        rows += [
            Row(f"append, {count:,} images", count / appended, "images/s", note=f"flushed every {BLOCK_IMAGES} images"),
            Row(f"publish, {count:,} images", count / published, "images/s", note=f"{size:,.1f} MB"),
            Row(f"append and publish, {count:,} images", count / (appended + published), "images/s"),
            Row(f"load, {count:,} images", count / min(loads), "images/s", note=f"best of {len(loads)}, checksums verified"),
        ]
    listed = ", ".join(f"{seconds:.3g}" for seconds in loads)
    target = "≤ 1" if options.large_bank == 100_000 else ""
    rows.append(Row(f"seconds to load {count:,} images", min(loads), "s", target, f"all repeats: {listed}"))
    return Section("Image bank, 32×32", rows, samples)
