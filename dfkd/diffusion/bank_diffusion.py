"""A class-conditional diffusion model trained on the bank itself; variations by SDEdit. Needs no outside weights.

Training: DDPM (Ho et al., NeurIPS 2020) with the cosine schedule (Nichol & Dhariwal, ICML 2021) and v-prediction (Salimans &
Ho, ICLR 2022, eq. 10), on pixels in [-1, 1]. Variations: SDEdit (Meng et al., ICLR 2022, algorithm 1): the parent is noised
to `strength` of the trajectory and denoised again, here by DDIM with eta = 0 (Song et al., ICLR 2021, eq. 12).
"""

from __future__ import annotations

import copy
import math
import time
from functools import reduce
from typing import Any

import torch
from torch.nn import functional as F

from dfkd.checkpoint import Checkpoint
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import to_bytes, to_unit
from dfkd.diffusion.backends import COST_FILE, Backend, image_generators, image_noise
from dfkd.divergence import Watch, slowed
from dfkd.errors import UserError
from dfkd.files import write_json
from dfkd.history import History
from dfkd.progress import StopRequest, progress
from dfkd.provenance import Cost
from dfkd.runtime import Runtime, derive_seed, seed_everything
from dfkd.settings import AugmentSettings, BankDiffusionSettings

TIMESTEPS = 1000  # of the training schedule
ROWS = 200  # of the history, at most
TRIPLES = 12  # image, noised and denoised, in a grid
SAVE_SECONDS = 60  # between saves of the training state; they do not change the result


def check_shape(settings: BankDiffusionSettings, info: DatasetInfo) -> None:
    """Refuse an image size that the UNet cannot halve at every level, and a first level narrower than a patch.

    Of noise with C p² values a position, a level of fewer channels passes on a part, and what is left stays in the images.

    Raises:
        UserError: names the sizes and the settings to change.
    """
    multiple = settings.patch * 2 ** (len(settings.channels) - 1)
    if info.image_size % multiple:
        raise UserError(
            f"augment.bank_diffusion: images of {info.image_size} pixels cannot be halved at {len(settings.channels)} levels "
            f"of patch {settings.patch} (a multiple of {multiple} is needed); shorten `channels` or lower `patch`."
        )
    folded = info.channels * settings.patch**2
    if settings.channels[0] < folded:
        raise UserError(
            f"augment.bank_diffusion: the first of `channels`, {settings.channels[0]}, is less than the {folded} values of a "
            f"patch of {settings.patch}, and noise would stay in the images; widen `channels` or lower `patch`."
        )


def build_unet(settings: BankDiffusionSettings, info: DatasetInfo) -> torch.nn.Module:
    """diffusers' UNet2DModel on patches: [N, C p², H/p, W/p] -> the same shape, conditioned on timestep and class."""
    from diffusers import UNet2DModel

    channels = settings.channels
    folded = info.channels * settings.patch**2
    groups = max(1, reduce(math.gcd, channels) // 4)
    while any(width % groups for width in channels) or groups > 32:
        groups //= 2
    unet: torch.nn.Module = UNet2DModel(  # type: ignore[assignment]
        sample_size=info.image_size // settings.patch,
        in_channels=folded,
        out_channels=folded,
        layers_per_block=settings.layers_per_block,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        attention_head_dim=math.gcd(channels[-1], 32),
        norm_num_groups=groups,
        num_class_embeds=len(info.classes),
    )
    return unet


def build_scheduler() -> Any:
    """The noise schedule of training and of sampling."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=True,
    )


def learning_rate(step: int, settings: BankDiffusionSettings) -> float:
    """Linear warm-up over a twentieth of the steps (at most 500), then cosine to zero."""
    warmup = min(500, settings.train_steps // 20)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.train_steps - warmup)))


class BankDiffusion(Backend):
    """Trains a UNet on the bank, then re-noises and denoises its images."""

    def __init__(self, settings: AugmentSettings, info: DatasetInfo, runtime: Runtime) -> None:
        super().__init__(settings, info, runtime)
        self.own = settings.bank_diffusion
        check_shape(self.own, info)
        seed_everything(settings.seed, "augment", "unet")
        self.unet = runtime.place(build_unet(self.own, info))
        self.ema = copy.deepcopy(self.unet).eval().requires_grad_(False)
        self.scheduler = build_scheduler()
        self.every = -(-self.own.train_steps // ROWS)  # steps of a row of the history
        self.total_loss = torch.zeros((), device=runtime.device)  # of the steps since the last row of the history
        self._seen: tuple[torch.Tensor, ...] | None = None  # of the last batch: images, noised, predicted velocity, timesteps
        self._train_unet, self._ema_unet = runtime.compiled(self.unet), runtime.compiled(self.ema)

    @property
    def learns(self) -> bool:
        """True: the UNet is trained on the bank."""
        return True

    def describe(self) -> dict[str, Any]:
        """Size of the UNet and how often it was updated."""
        return {"unet_params": sum(p.numel() for p in self.unet.parameters()), "train_steps": self.own.train_steps}

    # -- training -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        checkpoint: Checkpoint,
        cost: Cost,
        stop: StopRequest,
        history: History,
    ) -> None:
        """Train on the bank (held on the device as uint8); batch, timesteps and noise of a step depend on (seed, step)."""
        optimiser = torch.optim.AdamW(self.unet.parameters(), lr=self.own.lr, fused=self.runtime.precision == "fast")
        done = self._restore(checkpoint, optimiser, history)
        self.slowed = slowed(self.settings, checkpoint.folder).bank_diffusion
        if done < self.own.train_steps:
            images, labels = images.to(self.runtime.device), labels.to(self.runtime.device)
            self.unet.train()
        saved, ranks = time.monotonic(), self.runtime.ranks
        share = ranks.share(self.own.batch_size)
        watch = Watch("bank diffusion", ["loss"], self.runtime.device, "augment.bank_diffusion.lr")
        with progress("bank diffusion", self.own.train_steps, done) as bar:
            for step in range(done, self.own.train_steps):
                with cost.measure(self.runtime):
                    for group in optimiser.param_groups:
                        group["lr"] = learning_rate(step, self.slowed)
                    optimiser.zero_grad(set_to_none=True)
                    loss = self._loss(images, labels, step)
                    ranks.backward(loss, optimiser, share)
                    loss = ranks.mean(loss.detach(), share)
                    torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
                    optimiser.step()
                    self._average(step)
                    self.total_loss += loss
                    watch.see(step, loss)
                note = ""
                cost.optimiser_steps = step + 1
                finished, stopping = step + 1 == self.own.train_steps, bool(stop)
                saving = finished or stopping or bool(ranks.agree(time.monotonic() - saved > SAVE_SECONDS))
                if (step + 1) % self.every == 0 or saving:
                    watch.check()
                if (step + 1) % self.every == 0 or finished:
                    note = self._record(step, history, cost)
                if saving:
                    self._save(checkpoint, None if finished else optimiser, cost, history)
                    saved = time.monotonic()
                bar.advance(note=note)
                if stopping:
                    stop.stop()

    def _loss(self, images: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """Mean squared error of the predicted velocity on this process's part of the batch of this step."""
        size, device = self.own.batch_size, self.runtime.device
        draw = torch.Generator(device).manual_seed(derive_seed(self.settings.seed, "augment", "train", step))
        chosen = torch.randint(len(images), (size,), generator=draw, device=device)
        x = to_unit(images[chosen]) * 2 - 1
        if self.info.flip:
            x = torch.where(torch.rand(size, 1, 1, 1, generator=draw, device=device) < 0.5, x.flip(3), x)
        x = self._fold(x)
        noise = self.runtime.images(torch.randn(x.shape, generator=draw, device=device))
        times = torch.randint(TIMESTEPS, (size,), generator=draw, device=device)
        x, noise, times, chosen = (self.runtime.ranks.mine(values) for values in (x, noise, times, chosen))
        noised = self.scheduler.add_noise(x, noise, times)
        with self.runtime.autocast():
            predicted = self._train_unet(noised, times, class_labels=labels[chosen]).sample.float()
        self._seen = x, noised, predicted.detach(), times
        return F.mse_loss(predicted, self.scheduler.get_velocity(x, noise, times))

    def _record(self, step: int, history: History, cost: Cost) -> str:
        """A row about the steps since the last one; now and then what the UNet makes of noise, and words for the log."""
        count = step % self.every + 1
        loss = self.total_loss.item() / count
        self.total_loss.zero_()
        row = {"step": step + 1, "lr": learning_rate(step, self.slowed), "loss": loss}
        history.append(row, cost.seconds, count * self.own.batch_size)
        if not history.shows(-(-self.own.train_steps // self.every)):
            return ""
        history.show("image, noised, denoised", self.denoised(), group=3)
        return f"loss {loss:.4f}"

    @torch.no_grad()
    def denoised(self) -> torch.Tensor:
        """Of the last batch, by falling noise: image, noised image and the image that the UNet predicts, uint8 [3n,C,H,W]."""
        assert self._seen is not None
        own, noised, velocity, times = (values[:TRIPLES] for values in self._seen)
        kept = self.scheduler.alphas_cumprod.to(times.device)[times].view(-1, 1, 1, 1)
        predicted = kept.sqrt() * noised - (1 - kept).sqrt() * velocity  # Salimans & Ho, ICLR 2022, section 4
        rows = torch.stack([own, noised, predicted], 1)[times.argsort(descending=True)].flatten(0, 1)
        return to_bytes(self._unfold(rows).add(1).div(2).clamp(0, 1))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Exponential moving average of the weights; the decay grows to its value, so that short runs forget the start."""
        decay = min(self.own.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.unet.parameters()), 1 - decay)

    def _save(self, checkpoint: Checkpoint, optimiser: torch.optim.Optimizer | None, cost: Cost, history: History) -> None:
        """The whole state; after the last step the averaged weights and the history are all that is needed."""
        state: dict[str, Any] = {"step": cost.optimiser_steps, "ema": self.ema.state_dict(), "loss": self.total_loss}
        state |= history.state()
        if optimiser is not None:
            state |= {"unet": self.unet.state_dict(), "optimiser": optimiser.state_dict()}
        write_json(checkpoint.folder / COST_FILE, cost.as_dict())
        checkpoint.save(state)

    def _restore(self, checkpoint: Checkpoint, optimiser: torch.optim.Optimizer, history: History) -> int:
        """The number of steps already done."""
        state = checkpoint.load()
        if state is None:
            return 0
        history.load_state(state)
        self.total_loss += state.get("loss", 0.0)
        self.ema.load_state_dict(state["ema"])
        if "unet" in state:
            self.unet.load_state_dict(state["unet"])
            optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])

    # -- variations ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def vary(self, images: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, variation: int) -> torch.Tensor:
        """SDEdit of each image towards its class."""
        generators = image_generators(self.settings.seed, ids, variation)
        varied = [
            self._edit(images[i : i + size], labels[i : i + size], generators[i : i + size])
            for size in (self.own.sampling_batch_size,)
            for i in range(0, len(images), size)
        ]
        return torch.cat(varied) if varied else images.clone()

    def _edit(self, images: torch.Tensor, labels: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
        self.scheduler.set_timesteps(self.own.sampling_steps)
        run = max(1, round(self.own.strength * self.own.sampling_steps))
        times = self.scheduler.timesteps.tolist()[-run:]
        x = self._fold(to_unit(images.to(self.runtime.device)) * 2 - 1)
        noise = self.runtime.images(image_noise(tuple(x.shape[1:]), generators))
        x = self.scheduler.add_noise(x, noise, torch.tensor(times[:1], device=x.device))
        labels = labels.to(self.runtime.device)
        for moment in times:  # plain ints: the scheduler looks its tables up on the CPU, without waiting for the device
            with self.runtime.autocast():
                predicted = self._ema_unet(x, moment, class_labels=labels).sample
            x = self.scheduler.step(predicted.float(), moment, x, eta=0.0).prev_sample
        return to_bytes(self._unfold(x).add(1).div(2).clamp(0, 1)).cpu()

    def _fold(self, x: torch.Tensor) -> torch.Tensor:
        return self.runtime.images(F.pixel_unshuffle(x, self.own.patch) if self.own.patch > 1 else x)

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(x, self.own.patch) if self.own.patch > 1 else x
