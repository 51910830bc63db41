"""Loose image files and packed ones: reading, decoding."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.settings import Options
from benchmarks.table import Row, Section
from dfkd.datasets.folder import read_images, visible_files
from dfkd.packed.file import PackedFile
from dfkd.packed.pack import pack

CLASSES, WIDTH, HEIGHT = 8, 500, 375  # pixels: about the mean of ImageNet
SHORT, SIZE = 256, 224  # short side of the smaller ones, pixels that a network takes


def make_files(folder: Path, count: int) -> int:
    """Write made-up photographs, JPEG of quality 90, in class folders; bytes in all."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        pixels = smooth.astype(np.int16) + draw.integers(-12, 13, (HEIGHT, WIDTH, 3))
        path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return sum(path.stat().st_size for path in visible_files(folder))


def forget(paths: list[Path]) -> None:
    """Have the system drop these files from its page cache, as far as it will."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options: Options, folder: Path) -> Section:
    """Folder and packed file in turns: bytes alone, from the page cache and past it; decoded to 224×224."""
    count = options.files
    root, output = folder / "files", folder / "packed.lmdb"
    size = make_files(root, count)
    begin = time.perf_counter()
    pack(root, output)
    packing = time.perf_counter() - begin
    pack(root, folder / "small.lmdb", size=SHORT)
    file, small = PackedFile(output), PackedFile(folder / "small.lmdb")
    order = [root / name for name in file.names("all")]  # as a shuffled pass over loose files would have it
    workers = torch.get_num_threads()

    def loose_bytes() -> None:
        for path in order:
            path.read_bytes()

    def packed_bytes() -> None:
        for _ in file.blocks(file.split_blocks("all")):
            pass

    def cold(action: Callable[[], None], paths: list[Path]) -> Callable[[], float]:
        def run() -> float:
            forget(paths)
            return timed(action)

        return run

    variants: dict[str, Callable[[], float]] = {
        "read, folder": lambda: timed(loose_bytes),
        "read, packed": lambda: timed(packed_bytes),
        "read past the page cache, folder": cold(loose_bytes, order),
        "read past the page cache, packed": cold(packed_bytes, [output]),
        "decoded, folder": lambda: timed(lambda: read_images(order, SIZE, 3)),
        "decoded, packed": lambda: timed(lambda: file.decoded("all", SIZE, 3, workers=workers)),
        "decoded, packed smaller": lambda: timed(lambda: small.decoded("all", SIZE, 3, workers=workers)),
    }
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            samples[name].append(variant())
    rates = {name: count / statistics.median(found) for name, found in samples.items()}
    rows = [Row("pack", count / packing, "files/s", note="every file decoded once, to check it")]
    for kind, note in (
        ("read", "from the page cache; packed: checksums compared"),
        ("read past the page cache", "which the system was asked to drop before"),
        ("decoded", f"folder: {workers} threads; packed: {workers} processes, their start included"),
    ):
        loose, packed = rates[f"{kind}, folder"], rates[f"{kind}, packed"]
        rows += [Row(f"{kind}, folder", loose, "files/s"), Row(f"{kind}, packed", packed, "files/s")]
        rows.append(Row(f"{kind}, packed / folder", packed / loose, "×", note=note))
    smaller = rates["decoded, packed smaller"]
    rows.append(Row(f"decoded, packed with --size {SHORT}", smaller, "files/s"))
    rows.append(Row(f"decoded, packed with --size {SHORT} / folder", smaller / rates["decoded, folder"], "×"))
    title = f"Packed images: {count:,} JPEG files of {WIDTH}×{HEIGHT}, {size / count / 1e3:.0f} kB each, to {SIZE}×{SIZE}"
    return Section(title, rows, samples)


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
