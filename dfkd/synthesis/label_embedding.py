"""What NAYER knows of a class before it has seen an image: a vector of its name.

CLIP's text encoder on a prompt such as "a image of cat" (Radford et al., arXiv 2103.00020), or, where no such weights are at
hand, random vectors that are orthogonal to each other and say nothing but which class it is.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.diffusion.pretrained import load_pretrained
from dfkd.errors import UserError
from dfkd.methods import NAYERSettings

logger = logging.getLogger(__name__)

SIZE = 512  # of CLIP ViT-B/32's text embedding, and of the random ones
Kind = Literal["clip", "orthogonal"]


def label_embedding(settings: NAYERSettings, info: DatasetInfo) -> tuple[torch.Tensor, Kind]:
    """Embeddings [K,E] of the classes, float32, on the CPU, and what they are.

    `auto` takes CLIP if its text encoder lies in the folder or in the hub's cache, and never touches the network; `clip` may
    download a hub id.

    Raises:
        UserError: `clip` was asked for and cannot be loaded.
    """
    if settings.embedding != "orthogonal":
        try:
            return clip_embedding(settings, info, download=settings.embedding == "clip"), "clip"
        except UserError as error:
            if settings.embedding == "clip":
                raise
            logger.info("label embedding: orthogonal random vectors, as no CLIP text encoder is at hand (%s)", error)
    return orthogonal_embedding(len(info.classes)), "orthogonal"


@torch.inference_mode()
def clip_embedding(settings: NAYERSettings, info: DatasetInfo, download: bool) -> torch.Tensor:
    """CLIP's text embeddings of the prompts of all classes, [K,E]."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    texts = [settings.prompt.replace("{}", name) for name in info.classes]
    alternative = "choose embedding: orthogonal"
    tokenizer = load_pretrained(CLIPTokenizer, settings.clip, "clip", alternative=alternative, download=download)
    encoder = load_pretrained(CLIPTextModelWithProjection, settings.clip, "clip", alternative=alternative, download=download)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return encoder.eval()(**tokens).text_embeds.float().clone()


def orthogonal_embedding(classes: int) -> torch.Tensor:
    """Unit vectors [K,512], orthogonal to each other as far as there is room, from torch's global generator."""
    return torch.nn.init.orthogonal_(torch.empty(classes, SIZE))
