"""What is in the folder: banks, networks, runs. Every name in a request goes through `Library`, which leads nowhere else."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dfkd.bank.meta import BankMeta
from dfkd.errors import UserError
from dfkd.inspection.related import is_made_from
from dfkd.inspection.sidecar import scores_file
from dfkd.inspection.viewer.outline import Outline, outline, outlines
from dfkd.inspection.viewer.runs import Run, gather_runs

Signature = tuple[int, int, int, int]  # device, inode, time of the last change (ns), bytes


class Refused(UserError):
    """A name that leads out of the folder."""


class Missing(UserError):
    """A name under which there is nothing."""


@dataclass(frozen=True)
class Bank:
    """A file that calls itself a bank; `meta` is None and `fault` says why if it is none."""

    name: str  # path below the folder, with `/`
    path: Path
    signature: Signature
    outline: Outline

    @property
    def meta(self) -> BankMeta | None:
        """What the bank says of itself."""
        return self.outline.meta

    @property
    def fault(self) -> str:
        """What is wrong with it, in a sentence."""
        return self.outline.fault

    def described(self) -> dict[str, Any]:
        """For the list of banks, JSON-ready."""
        state = "broken" if self.meta is None else ("complete" if self.meta.status == "complete" else "growing")
        facts: dict[str, Any] = {
            "name": self.name, "state": state, "bytes": self.signature[3], "modified": self.signature[2] / 1e9,
        }  # fmt: skip
        if self.meta is None:
            return facts | {"fault": self.fault}
        architecture = next((str(step["architecture"]) for step in self.meta.lineage if "architecture" in step), "")
        info = self.meta.dataset
        return facts | {
            "kind": self.meta.kind,
            "images": self.meta.images,
            "dataset": info.name,
            "shape": list(info.shape),
            "classes": len(info.classes),
            "teacher": architecture,
            "teacher_sha256": self.meta.teacher_sha256,
            "method": str(self.meta.extra.get("method", "")),
            "measured": scores_file(self.path).is_file(),
        }


@dataclass(frozen=True)
class Network:
    """Weights with a card."""

    name: str
    path: Path
    card: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """For lists to choose from, JSON-ready."""
        known = {key: self.card.get(key) for key in ("role", "architecture", "stage", "seed", "sha256", "metrics")}
        return {"name": self.name, **known}


@dataclass
class Found:
    """What one walk through the folder found, by name."""

    banks: dict[str, Bank] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)


class Library:
    """The folder that the viewer was given.

    Raises:
        UserError: it is no folder, or cannot be read.
    """

    def __init__(self, root: str | Path) -> None:
        self.given = str(root)
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder; name the results folder to look into.")
        self._outlines: dict[tuple[str, Signature], Outline] = {}
        self._growing: set[tuple[str, tuple[int, ...]]] = set()  # names with device and inode
        self._cards: dict[tuple[str, Signature], dict[str, Any] | None] = {}
        self._reading: dict[tuple[str, Signature], Future[Outline]] = {}
        self._lock = threading.Lock()

    def resolve(self, name: str) -> Path:
        """The file or folder of this name.

        Raises:
            Refused: it lies, or leads, outside of the folder.
            Missing: there is none.
        """
        parts = PurePosixPath(name).parts
        if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in parts:
            raise Refused("this is no name of a file below the folder.")
        path = self.root.joinpath(*parts)
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise Missing(f"{name}: there is no such file (any more); go back to the list.") from None
        if not real.is_relative_to(self.root):
            raise Refused(f"{name}: a link that leads out of the folder; start the viewer on the folder that it leads to.")
        return path

    def bank(self, name: str) -> Bank:
        """The bank of this name, as it is now.

        Raises:
            UserError: as `resolve`, or its meta cannot be read.
        """
        self.located(name)
        bank = self._banks([name])[name]
        if bank.meta is None:
            raise UserError(bank.fault)
        return bank

    def located(self, name: str) -> tuple[Path, Signature]:
        """Where the bank of this name is, and what changes when the file does.

        Raises:
            UserError: as `resolve`, or the file cannot be read.
        """
        if not name.endswith(".lmdb"):
            raise Missing(f"{name}: not the name of a bank (.lmdb).")
        path = self.resolve(name)
        return path, _signature(path)

    def note_fault(self, name: str, signature: Signature, fault: str) -> None:
        """Remember that a bank turned out to be damaged when all of it was read, so that the list says it too."""
        self._outlines[name, signature] = Outline(None, self.below(fault))

    def below(self, text: str) -> str:
        """A sentence with paths as they are named here, below the folder."""
        return text.replace(str(self.root) + os.sep, "")

    def find(self) -> Found:
        """Walk through the folder; hidden folders and links to folders are left out."""
        found, banks, histories = Found(), [], []
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            place = Path(folder).relative_to(self.root)
            for file in sorted(files):
                name = str(place / file)
                if file.startswith(".") or not _is_text(name):
                    continue
                if file.endswith(".lmdb"):
                    banks.append(name)
                elif file in ("history.csv", "history.partial.csv", "fingerprint"):
                    histories.append(name)
                elif file.endswith(".safetensors") and (network := self._network(name)):
                    found.networks[name] = network
        found.banks = self._banks(banks)
        found.runs = gather_runs(histories, [bank.name for bank in found.banks.values() if bank.meta is not None])
        return found

    def relatives(self, name: str) -> tuple[Bank | None, list[Bank]]:
        """The bank beside this one that its parent ids point into, and those whose parent ids point into it."""
        bank = self.bank(name)
        folder = PurePosixPath(name).parent
        beside = self._banks(
            str(folder / path.name) for path in sorted(bank.path.parent.glob("*.lmdb")) if path.name != bank.path.name
        )
        others = [other for other in beside.values() if other.meta is not None]
        assert bank.meta is not None
        parent = next((other for other in others if other.meta and is_made_from(bank.meta, other.meta)), None)
        children = [other for other in others if other.meta and is_made_from(other.meta, bank.meta)]
        return parent, children

    def _banks(self, names: Iterable[str]) -> dict[str, Bank]:
        found: dict[str, Bank] = {}
        unread: list[Bank] = []
        for name in names:
            try:
                path, signature = self.located(name)
            except UserError as error:
                found[name] = Bank(name, self.root / name, (0, 0, 0, 0), Outline(None, str(error)))
                continue
            kept = self._outlines.get((name, signature))
            found[name] = Bank(name, path, signature, kept or Outline(None, ""))  # in this order, read or not
            if kept is None:
                unread.append(found[name])
        for bank, new in self._outlined(unread):
            found[bank.name] = Bank(bank.name, bank.path, bank.signature, new)
        return found

    def _outlined(self, banks: list[Bank]) -> Iterator[tuple[Bank, Outline]]:
        """Read banks that are not known yet; what another thread is reading already is waited for."""
        with self._lock:
            own = [bank for bank in banks if (bank.name, bank.signature) not in self._reading]
            own_places = {
                (bank.name, bank.signature): self._reading.setdefault((bank.name, bank.signature), Future()) for bank in own
            }
            others = [(bank, self._reading[bank.name, bank.signature]) for bank in banks if bank not in own]
        # One that was read before and grows since is whole: what LMDB has committed is not touched again.
        grown = [bank for bank in own if (bank.name, bank.signature[:2]) in self._growing]
        fresh = [bank for bank in own if bank not in grown]
        read = itertools.chain((outline(bank.path) for bank in grown), outlines([bank.path for bank in fresh]))
        try:
            for bank, new in zip([*grown, *fresh], read, strict=True):
                if new.meta is not None and new.meta.status == "writing":
                    self._growing.add((bank.name, bank.signature[:2]))
                kept = self._outlines[bank.name, bank.signature] = new._replace(fault=self.below(new.fault))
                own_places.pop((bank.name, bank.signature)).set_result(kept)
                yield bank, kept
        finally:
            with self._lock:
                for bank in own:
                    self._reading.pop((bank.name, bank.signature), None)
            for place in own_places.values():  # those that an error has left
                place.set_result(Outline(None, "it could not be read."))
        for bank, place in others:
            yield bank, place.result()

    def _network(self, name: str) -> Network | None:
        try:
            path = self.resolve(name)
            card_path = self.resolve(str(PurePosixPath(name).with_suffix(".json")))
            key = (name, _signature(card_path))
            if key not in self._cards:
                content = json.loads(card_path.read_text(encoding="utf-8"))
                self._cards[key] = content if isinstance(content, dict) else None
        except (UserError, OSError, ValueError):
            return None
        card = self._cards[key]
        return Network(name, path, card) if card and card.get("role") in ("teacher", "student") else None


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8: no request could name it
        return False
    return True
