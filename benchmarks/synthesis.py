"""The init-bank step: small generator, teacher, R_bn and one-hot, backward, Adam."""

from __future__ import annotations

import copy

import torch

from benchmarks import reference
from benchmarks.flops import synthesis_flops
from benchmarks.peak import Peaks
from benchmarks.settings import INFO, LATENT_SIZE, Options, network
from benchmarks.table import Section
from benchmarks.timing import Clock, Variant, first_call, take_turns
from benchmarks.variants import ORIGINAL, runtimes, set_switches, step_rows
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.inversion import GeneratorInversion


def original(teacher: torch.nn.Module, options: Options, device: torch.device) -> Variant:
    """The step as public code computes it."""
    network = reference.OriginalNetwork(teacher, device)

    def run(steps: int, clock: Clock) -> None:
        reference.set_switches()
        seed_everything(0)
        reference.invert(network, INFO, options.batch, steps, device, clock)

    return run


def ours(teacher: torch.nn.Module, options: Options, runtime: Runtime) -> Variant:
    """The package's step; the scores of the finished batch are outside of the marks."""
    frozen = runtime.place(copy.deepcopy(teacher).requires_grad_(False))
    inversion = GeneratorInversion(
        frozen, INFO, runtime, batch_size=options.batch, steps=1, lr=1e-3, latent_size=LATENT_SIZE, generator="small", width=64,
        bn=1.0, oh=1.0,
    )  # fmt: skip

    def run(steps: int, clock: Clock) -> None:
        set_switches(runtime)
        seed_everything(0)
        inversion.steps = steps
        clock.mark()
        hook = inversion.optimiser.register_step_post_hook(lambda *_: clock.mark())
        inversion.synthesize()
        hook.remove()

    return run


def measure(options: Options, peaks: Peaks) -> Section:
    """All variants, taking turns."""
    teacher = network(options.teacher, seed=0)
    chosen = runtimes(options)
    device = next(iter(chosen.values())).device
    variants = {ORIGINAL: original(teacher, options, device)}
    variants |= {name: ours(teacher, options, runtime) for name, runtime in chosen.items()}
    first = {name: first_call("synthesis", name, variant, device) for name, variant in variants.items()}
    samples = take_turns("synthesis", variants, options.rounds, options.steps, device)
    rows = step_rows(
        samples, first, options.batch, synthesis_flops(teacher), peaks, "≥ 6 on a CPU with AMX", "≥ 45 on a CPU with AMX"
    )
    return Section(f"Init-bank step: {options.teacher}, batch {options.batch}, 32×32, small generator", rows, samples)
