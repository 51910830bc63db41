"""FLOPs of the methods' steps, counted as torch executes them: `python -m benchmarks.work` writes work.json.

Counted on 32×32 images. In the networks of this field nearly all work is in convolutions and grows with the number of pixels.
A multiply-add is 2; what a step does beyond convolutions and matrix products is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.methods import built, noise_store, published, student_step
from benchmarks.settings import INFO, LATENT_SIZE, Options, network
from dfkd.diffusion.bank_diffusion import build_unet
from dfkd.files import write_json
from dfkd.runtime import Runtime
from dfkd.settings import BankDiffusionSettings, InitBankSettings
from dfkd.synthesis.inversion import GeneratorInversion

FILE = Path(__file__).with_suffix(".json")
BATCH = 8  # images of the steps that are counted
INIT_BANK, UNET = "init bank", "bank-diffusion"
METHODS_COUNTED = ("dda", "csd", "cmi", "cmi-nonadversarial", "fastmeta", "dafl", "kd-vanilla")


@dataclass(frozen=True)
class Work:
    """FLOPs an image of 32×32."""

    step: float = 0.0  # of a synthesis step
    beside: float = 0.0  # of a synthesis, whatever the number of its steps
    student: float = 0.0  # of a student step


def flops(action: Callable[[], object]) -> int:
    """Of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def of_synthesis(synthesis: Callable[[int], Callable[[], object]], batch: int) -> tuple[float, float]:
    """Of a step and of what is beside the steps, an image; `synthesis` makes one of so many steps."""
    one, two = (flops(synthesis(steps)) / batch for steps in (1, 2))
    return two - one, 2 * one - two


def method_work(method: str, options: Options, runtime: Runtime, batch: int = BATCH) -> Work:
    """Half way through the recipe of a method."""
    settings = published(method, batch)
    epoch = max(settings.epochs // 2, settings.warmup)

    def synthesis(steps: int) -> Callable[[], object]:
        synthesizer, objective = built(method, settings.model_copy(update={"g_steps": steps}), options, runtime)
        objective.begin_epoch(epoch, settings.lr)
        return lambda: synthesizer.synthesize(epoch)

    step, beside = of_synthesis(synthesis, batch) if hasattr(settings, "g_steps") else (0.0, 0.0)
    synthesizer, objective = built(method, settings, options, runtime)
    objective.begin_epoch(epoch, settings.lr)
    return Work(step, beside, flops(student_step(synthesizer, objective, noise_store(4 * batch, runtime))) / batch)


def init_bank_work(options: Options, runtime: Runtime, batch: int = BATCH) -> Work:
    """Of the init bank."""
    teacher, own = runtime.place(network(options.teacher, seed=0).requires_grad_(False)), InitBankSettings()

    def synthesis(steps: int) -> Callable[[], object]:
        return GeneratorInversion(
            teacher, INFO, runtime, batch_size=batch, steps=steps, lr=own.lr, latent_size=LATENT_SIZE, generator=own.generator,
            width=own.width, bn=own.bn, oh=own.oh,
        ).synthesize  # fmt: skip

    return Work(*of_synthesis(synthesis, batch))


def unet_work() -> Work:
    """Of the diffusion model of the back end `bank-diffusion`: a step is a forward pass."""
    unet = build_unet(BankDiffusionSettings(), INFO)
    with torch.no_grad():
        noise, label = torch.randn(1, *INFO.shape), torch.zeros(1, dtype=torch.int64)
        return Work(step=flops(lambda: unet(noise, 0, class_labels=label)))


def count(teacher: str, student: str, methods: Sequence[str] = METHODS_COUNTED) -> dict[str, Work]:
    """Of the init bank, the diffusion model and these methods."""
    options, runtime = replace(Options(device="cpu"), teacher=teacher, student=student), Runtime.create("fast", "cpu")
    found = {INIT_BANK: init_bank_work(options, runtime), UNET: unet_work()}
    return found | {method: method_work(method, options, runtime) for method in methods}


def known(teacher: str, student: str) -> dict[str, Work]:
    """What work.json has of a pair."""
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return {name: Work(**work) for name, work in content.get(f"{teacher} {student}", {}).items()}


def work_of(teacher: str, student: str, methods: Sequence[str]) -> dict[str, Work]:
    """From work.json where it has all of it, else counted."""
    found = known(teacher, student)
    return found if {INIT_BANK, UNET, *methods} <= found.keys() else count(teacher, student, methods)


if __name__ == "__main__":
    pairs = [("resnet34", "resnet18"), ("wrn402", "wrn161")]
    counted = {" ".join(pair): {name: asdict(work) for name, work in count(*pair).items()} for pair in pairs}
    write_json(FILE, counted)
