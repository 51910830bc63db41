"""A plugin of the tests: networks that are slow, large or broken while a file in the working directory says so.

`slow-STAGE-NAME` holds the seconds that each forward pass waits; `large-STAGE-NAME` holds the megabytes that the process takes
more; `broken-STAGE-NAME` lets it fail. What they compute is what the plain networks compute.
"""

import os
import sys
import time
from pathlib import Path

from dfkd.config import register_model

register_model("told162", "told:told162")
register_model("told161", "told:told161")

BALLAST = []


def said(what, name):
    """What the file for this process says, or None."""
    file = Path(f"{what}-{sys.argv[1]}-{name}")
    try:
        return float(file.read_text())
    except FileNotFoundError:
        return None


def build(name, width, classes, channels, image_size):
    from dfkd.models.wrn import wrn

    print("sees GPUs", os.environ.get("CUDA_VISIBLE_DEVICES", "of the whole machine"), file=sys.stderr)
    if said("broken", name) is not None:
        sys.exit(f"dfkd: {name} is broken in {sys.argv[1]}.")
    if (megabytes := said("large", name)) is not None and not BALLAST:
        BALLAST.append(b"1" * int(megabytes * 1e6))
        time.sleep(5)  # memory is looked at once a second
    network = wrn(16, width, classes, channels, image_size)
    network.conv1.register_forward_pre_hook(lambda *_: time.sleep(said("slow", name) or 0))
    return network


def told162(classes, channels, image_size):
    return build("told162", 2, classes, channels, image_size)


def told161(classes, channels, image_size):
    return build("told161", 1, classes, channels, image_size)
