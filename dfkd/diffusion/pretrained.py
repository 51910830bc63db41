"""Weights of others: from a local folder without any network, or from the Hugging Face hub and its cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dfkd.errors import UserError

logger = logging.getLogger(__name__)


def load_pretrained(
    cls: Any,
    name: str,
    setting: str,
    *,
    alternative: str,
    revision: str | None = None,
    download: bool = True,
    **options: Any,
) -> Any:
    """`cls.from_pretrained` of a local folder (the network is never touched) or of a hub id (cached or downloaded).

    Args:
        cls: a class of diffusers or transformers.
        setting: the settings key that holds `name`, for the message.
        alternative: what the user can choose instead, for the message.
        revision: of the hub's repository; a folder has none.
        download: whether the network may be touched for a hub id that is not in the cache.

    Raises:
        UserError: there are no such weights here, and they cannot be downloaded.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"{setting}: {name}: no such folder; give a folder with the weights or a hub id, or {alternative}.")
    local = folder.is_dir()
    if local:
        where, place, remedy = f"the folder {name}", {}, "copy the whole model there"
    else:
        where = name + (f", revision {revision}," if revision else "")
        place = {"revision": revision} if revision else {}
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        remedy = f"fetch them where there is network (`{fetch}`), or give a local folder in {setting}"
        if download:
            logger.info(
                "loading %s from the hub's cache, downloading it from huggingface.co if it is not there", where.rstrip(",")
            )
    offline = local or not download
    try:
        return cls.from_pretrained(str(folder) if local else name, local_files_only=offline, **place, **options)
    except Exception as error:  # hub, httpx, safetensors and torch name no common class for absent or damaged weights
        reason = " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
        kind = "cannot be loaded" if local else "are not in the hub's cache and cannot be downloaded"
        raise UserError(f"{setting}: the weights of {where} {kind} ({reason}); {remedy}, or {alternative}.") from error
