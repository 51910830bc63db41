"""Is every byte of a bank as it was published?"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from dfkd.bank.storage import check_footer, check_structure
from dfkd.errors import UserError


def verify_bank(path: str | Path) -> list[str]:
    """Everything that is wrong with a bank; an empty list when each byte of the file is as it was published.

    Three checks, so that a fault is found wherever it lies and named where it can be: LMDB's header against the length of
    the file, the digest of all bytes at the end of the file, and the checksum of each record, read in a child process
    because a damaged LMDB file can kill its reader.

    Raises:
        UserError: there is no such file.
    """
    path = Path(path)
    faults = [fault] if (fault := check_footer(path)) else []
    try:
        check_structure(path)
    except UserError as error:
        return [*faults, str(error).removeprefix(f"{path}: ")]
    return faults + _probe(path)


def _probe(path: Path) -> list[str]:
    command = [sys.executable, "-m", "dfkd.bank.probe", str(path.resolve())]
    root = Path(__file__).resolve().parents[2]  # so that the child finds the package however this process found it
    child = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return [f"LMDB's pages are damaged: reading them ends in {name}"]
    try:
        faults: list[str] = json.loads(child.stdout)
    except ValueError:
        last = (child.stderr.strip().splitlines() or ["no output"])[-1]
        return [f"LMDB's pages are damaged: reading them ends with status {child.returncode} ({last})"]
    return faults
