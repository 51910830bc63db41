"""The four ways a step is computed, and what is said of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch

from benchmarks.peak import Peaks
from benchmarks.settings import Options
from benchmarks.table import Row
from dfkd.runtime import Runtime

ORIGINAL = "original habits"
REFERENCE = "reference precision"
EAGER = "fast path, eager"
COMPILED = "fast path, compiled"


def runtimes(options: Options) -> dict[str, Runtime]:
    """The package's variants that can run here."""
    found = {REFERENCE: Runtime.create("reference", options.device), EAGER: Runtime.create("fast", options.device)}
    if options.compile:
        compiled = Runtime.create("fast", options.device, compile=True)
        if compiled.compile:
            found[COMPILED] = compiled
    return found


def set_switches(runtime: Runtime) -> None:
    """Set torch's global switches as this runtime needs them; the variants take turns in one process."""
    Runtime.create(runtime.precision, str(runtime.device), runtime.compile)
    torch.backends.cudnn.deterministic = False  # the original's; `reference` has its own switch


def step_rows(
    samples: Mapping[str, list[float]],
    first: Mapping[str, float],
    batch: int,
    flops: int,
    peaks: Peaks,
    ratio_target: str,
    peak_target: str,
) -> list[Row]:
    """Rates, ratios to the original habits and fractions of the peaks.

    Args:
        samples: seconds of the steps of each variant.
        first: seconds of each variant's first call.
        flops: of one image in one step.
    """  # fmt: skip
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    rows = [
        Row(name, batch / seconds, "image-steps/s", note=f"median of {len(samples[name])} steps: {seconds:.3g} s")
        for name, seconds in medians.items()
    ]
    fast = [name for name in (COMPILED, EAGER) if name in medians]
    for name in fast:
        rows.append(Row(f"{name} / {ORIGINAL}", medians[ORIGINAL] / medians[name], "×", ratio_target))
    rows.append(Row(f"{EAGER} / {REFERENCE}", medians[REFERENCE] / medians[EAGER], "×"))
    if COMPILED in medians:
        # what the first call took beyond a first call that compiles nothing
        rows.append(Row("compiling, once a process", max(0.0, first[COMPILED] - first[EAGER]), "s", note="cold cache"))
    else:
        rows.append(Row(COMPILED, "not measured", note="no compiler here, or --no-compile"))
    rows.append(Row("work of a step", batch * flops / 1e9, "GFLOP", note=f"{flops / 1e9:.3f} GFLOP an image"))
    rows.append(Row("that work at the bf16 peak", batch * flops / peaks.bf16, "s a step"))
    for name in fast:
        rate = batch * flops / medians[name]
        rows.append(Row(f"{name}: of the bf16 peak", 100 * rate / peaks.bf16, "%", peak_target))
        rows.append(Row(f"{name}: of the fp32 peak", 100 * rate / peaks.fp32, "%"))
    return rows
