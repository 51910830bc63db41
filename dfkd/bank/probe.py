"""`python -m dfkd.bank.probe FILE`: read every record of a bank that may be damaged. Imports no torch.

A damaged LMDB tree can kill the process that walks it, so `dfkd.bank.verify` runs this as a child and takes its death
for a fault. Prints a JSON list of faults.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

from dfkd.bank.records import META_KEY, DamagedRecord, block_key, check_record, unpack_meta
from dfkd.bank.storage import reading
from dfkd.errors import UserError


def faults_of(path: str) -> list[str]:
    """Every fault of meta and records."""
    faults: list[str] = []
    with reading(path) as transaction:
        value = transaction.get(META_KEY)
        if value is None:
            return ["the meta record is missing"]
        meta: dict[str, Any] = {"blocks": 0, "images": 0, "status": "complete"}
        try:
            meta = unpack_meta(value)
        except DamagedRecord as error:
            faults.append(f"the meta record {error}")
        images = 0
        for number in range(meta["blocks"]):
            record = transaction.get(block_key(number))
            try:
                if record is None:
                    raise DamagedRecord("is missing")
                images += check_record(record, number).images
            except DamagedRecord as error:
                faults.append(f"block {number} {error}")
        if faults:
            return faults
        known = {META_KEY, *map(block_key, range(meta["blocks"]))}
        keys = transaction.cursor().iternext(values=False)
        found = {bytes(key) for key in itertools.islice(keys, 2 * len(known))}  # damaged pages may lead in a circle
        faults += [f"the record '{key.decode(errors='replace')}' does not belong there" for key in sorted(found - known)]
        if images != meta["images"]:
            faults.append(f"its meta says {meta['images']} images, its blocks hold {images}")
        if meta["status"] != "complete":
            faults.append(f"incomplete: {images} images are written; run the stage that makes it to its end")
    return faults


def main(path: str) -> None:
    """Print the faults of the bank at `path`."""
    try:
        faults = faults_of(path)
    except UserError as error:
        faults = [str(error).removeprefix(f"{path}: ")]
    print(json.dumps(faults))


if __name__ == "__main__":
    main(sys.argv[1])
