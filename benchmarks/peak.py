"""The yardstick: how fast the device multiplies large matrices, in fp32 and in bf16."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from benchmarks.settings import Options
from benchmarks.table import Row, Section
from dfkd.runtime import Runtime, multiplies_bf16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of a matrix product."""

    fp32: float
    bf16: float


@torch.no_grad()
def matmul_peak(size: int, dtype: torch.dtype, device: torch.device, seconds: float, windows: int) -> float:
    """FLOP/s of the product of two square matrices: the best of `windows` windows of `seconds` each."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(a)

    def window(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=result)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    window(1)
    count = max(1, round(seconds / window(1)))
    best = min(window(count) for _ in range(windows))
    return 2 * size**3 * count / best


def measure(options: Options) -> tuple[Section, Peaks]:
    """Both peaks. fp32 is without TF32."""
    device = Runtime.create("reference", options.device).device
    # A GPU needs larger matrices to be full.
    size = options.peak_size * (4 if device.type == "cuda" else 1)
    torch.use_deterministic_algorithms(False)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        found.append(matmul_peak(size, dtype, device, options.peak_seconds, options.peak_windows))
        logger.info("matmul peak %s: %.1f GFLOP/s", str(dtype)[6:], found[-1] / 1e9)
    peaks = Peaks(*found)
    hardware = multiplies_bf16(device)
    section = Section(
        "Matrix product",
        [
            Row("matmul peak, fp32", peaks.fp32 / 1e9, "GFLOP/s", note=f"{size}³, best of {options.peak_windows} windows"),
            Row("matmul peak, bf16", peaks.bf16 / 1e9, "GFLOP/s", note=f"{size}³, best of {options.peak_windows} windows"),
            Row(
                "hardware multiplies bf16",
                "yes" if hardware else "no",
                note="" if hardware else "so the fast path is fp32 here",
            ),
        ],
    )
    return section, peaks
