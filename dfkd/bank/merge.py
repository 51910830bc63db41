"""Shards to one bank, equal byte for byte to the bank that one job would have written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from dfkd.bank.format import BankMeta, Shard
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import read_records, write_bank
from dfkd.errors import UserError
from dfkd.files import together
from dfkd.history import join_rows

WORDS = {"teacher_sha256": "teacher", "stage_version": "stage version"}


def merge_banks(inputs: Sequence[str | Path], output: str | Path) -> BankMeta:
    """Gather the shards of one bank, in whatever order they are given, and publish it at `output`.

    A shard says which it is in `extra["shard"]` (see `Shard`); a single input without that is published again as it is.
    The result's meta says nothing of shards. Where all of them have a `.history.csv` or a `.timing.csv` beside them, the result
    gets one with their rows.

    Raises:
        UserError: a shard is missing, doubled, incomplete or damaged, or the shards do not belong together.
    """
    if not inputs:
        raise UserError(f"{output}: no shards to merge; name at least one.")
    readers = []
    for path in inputs:
        if not Path(path).exists():
            raise UserError(f"{path}: no such shard; make it: the other shards stay as they are.")
        with _remade_alone():
            readers.append(BankReader(path))
    ordered = _in_order(readers)
    first = ordered[0]
    for other in ordered[1:]:
        _same_origin(first, other)

    def records() -> Iterator[bytes]:
        for reader in ordered:
            with _remade_alone():
                yield from read_records(reader.path, reader.meta.blocks)

    with together():
        write_bank(output, _without_shard(first.meta), records())
        for suffix in (".history.csv", ".timing.csv"):
            tables = [reader.path.with_suffix(suffix) for reader in ordered]
            if all(table.exists() for table in tables):
                join_rows(tables, Path(output).with_suffix(suffix))
    return BankReader(output).meta


@contextlib.contextmanager
def _remade_alone() -> Iterator[None]:
    """What is wrong with one shard is mended by that shard alone, and this is what its sentence says."""
    try:
        yield
    except UserError as error:
        fault = str(error).rpartition("; ")[0]
        raise UserError(f"{fault}; remove this file and make it again: the other shards stay as they are.") from None


def _in_order(readers: list[BankReader]) -> list[BankReader]:
    shards = [_shard_of(reader, alone=len(readers) == 1) for reader in readers]
    count = shards[0].count
    by_index: dict[int, tuple[Shard, BankReader]] = {}
    for shard, reader in zip(shards, readers, strict=True):
        if shard.count != count or shard.index > count:
            raise UserError(f"{reader.path}: shard {shard.index} of {shard.count}, {readers[0].path} is one of {count}.")
        if shard.index in by_index:
            raise UserError(
                f"{reader.path}: shard {shard.index} of {count} is given twice, also as {by_index[shard.index][1].path}; "
                "name every shard once."
            )
        by_index[shard.index] = shard, reader
    missing = [str(index) for index in range(1, count + 1) if index not in by_index]
    if missing:
        raise UserError(f"{readers[0].path}: shard {', '.join(missing)} of {count} is missing; name every shard of the bank.")
    ordered = [by_index[index] for index in sorted(by_index)]
    block = 0
    for shard, reader in ordered:
        if shard.first_block != block or shard.blocks != reader.meta.blocks:
            raise UserError(
                f"{reader.path}: holds {reader.meta.blocks} blocks where its shard should hold {shard.blocks} from "
                f"{shard.first_block} on, and {block} come before it; make the shards again with one setting."
            )
        block += shard.blocks
    return [reader for _, reader in ordered]


def _shard_of(reader: BankReader, alone: bool) -> Shard:
    content = reader.meta.extra.get("shard")
    if content is None and alone:
        return Shard(index=1, count=1, first_block=0, blocks=reader.meta.blocks)
    try:
        return Shard.model_validate(content)
    except ValidationError:
        raise UserError(f"{reader.path}: does not say which shard it is; only shards of one bank can be merged.") from None


def _without_shard(meta: BankMeta) -> BankMeta:
    return meta.model_copy(update={"extra": {key: value for key, value in meta.extra.items() if key != "shard"}})


def _same_origin(first: BankReader, other: BankReader) -> None:
    left, right = _without_shard(first.meta), _without_shard(other.meta)
    for name in BankMeta.model_fields:
        if name not in ("images", "blocks") and getattr(left, name) != getattr(right, name):
            raise UserError(
                f"{other.path}: its {WORDS.get(name, name)} is not that of {first.path}; merge shards of one bank only."
            )
    if left.blocks and right.blocks and _scores(first) != _scores(other):
        raise UserError(f"{other.path}: its scores are not those of {first.path}; merge shards of one bank only.")


def _scores(reader: BankReader) -> set[str]:
    """Names of the scores of a shard that has images."""
    with _remade_alone():
        return set(reader.block(0).scores)
