"""Resident memory of reading a bank, each measurement in a process of its own.

`python -m benchmarks.memory load FILE` and `… read FILE COUNT` are those processes.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.bank import bank_path, make_bank
from benchmarks.settings import INFO, Options
from benchmarks.table import Row, Section
from dfkd.bank.reader import BankReader
from dfkd.bank.storage import GROUP_BYTES
from dfkd.distillation.stream import KEPT, BankSource, StreamedStore
from dfkd.runtime import Runtime

logger = logging.getLogger(__name__)
STATUS = Path("/proc/self/status")
REQUEST = 1000  # images that one call of the reader is asked for
WINDOW = 4096  # images of a window of streamed ones


def resident(key: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most so far. Pages of a mapped file count."""
    if not STATUS.exists():  # not Linux: the highest so far is all that is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def growth(action: str, path: str, count: int) -> dict[str, int]:
    """Load a bank, gather `count` random images of it, or stream so many; bytes in use before, and at most on the way."""
    torch.manual_seed(0)
    before = resident("VmRSS")
    reader = BankReader(path)
    if action == "load":
        kept = reader.load().images
    elif action == "stream":
        store = StreamedStore([BankSource(reader)], 0, INFO.shape, WINDOW, Runtime.create("fast", "cpu"))
        kept = torch.empty(min(KEPT * WINDOW, count), *INFO.shape, dtype=torch.uint8)  # what the windows hold at most
        passes = store.passes(256, "benchmark")
        for step in range(count // 256):
            store.fetch(passes, step)
        store.close()
    else:
        order = torch.randperm(len(reader))[:count]
        kept = torch.empty(len(order), *INFO.shape, dtype=torch.uint8)
        for start in range(0, len(order), REQUEST):
            kept[start : start + REQUEST] = reader.images(order[start : start + REQUEST])
    return {"before": before, "peak": resident("VmHWM"), "images": kept.nbytes}


def in_child(action: str, path: Path, count: int) -> dict[str, int]:
    """`growth` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", action, str(path.resolve()), str(count)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    found: dict[str, int] = json.loads(answer.stdout)
    grown = found["peak"] - found["before"]
    logger.info(
        "%s %d images of %s: peak %.0f MB, grown by %.0f MB", action, count, path.name, found["peak"] / 1e6, grown / 1e6
    )
    return found


def measure(options: Options, folder: Path) -> Section:
    """Loading both banks, and the same number of images read from either."""
    small, large = options.small_bank, options.large_bank
    for count in (small, large):
        if not bank_path(folder, count).exists():
            make_bank(bank_path(folder, count), count)
    rows, grown = [], {}
    actions = [(action, bank, bank) for action in ("load", "stream") for bank in (small, large)]
    for action, bank, count in (*actions, ("read", small, small), ("read", large, small)):
        found = in_child(action, bank_path(folder, bank), count)
        grown[action, bank] = found["peak"] - found["before"]
        name = f"read {count:,} images of a bank of {bank:,}" if action == "read" else f"{action} {bank:,} images"
        rows.append(
            Row(
                f"{name}: peak",
                found["peak"] / 1e6,
                "MB",
                note=f"grown by {grown[action, bank] / 1e6:.1f} MB, of which the images are {found['images'] / 1e6:.1f} MB",
            )
        )
    more = (grown["read", large] - grown["read", small]) / 1e6
    disk = (bank_path(folder, large).stat().st_size - bank_path(folder, small).stat().st_size) / 1e6
    note = (
        f"{100 * more / disk:.1f} % of the {disk:.0f} MB more on disk; a bank below {GROUP_BYTES / 1e6:.0f} MB is mapped whole"
    )
    rows.append(Row(f"{large // small} times the bank on disk, as many images read: more memory", more, "MB", "about 0", note))
    samples = {f"{action} {bank}, bytes grown": [float(value)] for (action, bank), value in grown.items()}
    return Section("Resident memory", rows, samples)


if __name__ == "__main__":
    print(json.dumps(growth(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
