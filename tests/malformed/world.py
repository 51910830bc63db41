"""A small results folder with one of everything that a user can hand to a command, and what is done to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, tiny_data, tiny_teacher: Path, reference) -> None:
    """Teacher, init bank, a finished run with its result, prepared data, an image folder and the config, below `folder`."""
    from dfkd.distillation.distill import distill
    from dfkd.evaluation.evaluate import evaluate
    from dfkd.evaluation.result import collect
    from dfkd.methods import DDASettings
    from dfkd.settings import EvaluateSettings, InitBankSettings
    from dfkd.synthesis.init_bank import init_bank

    folder.mkdir(parents=True)
    shutil.copytree(tiny_teacher.parent, folder / "teacher")
    (folder / "teacher" / tiny_teacher.name).rename(folder / "teacher" / "weights.safetensors")
    (folder / "teacher" / f"{tiny_teacher.stem}.json").rename(folder / "teacher" / "weights.json")
    shutil.copy(tiny_data.data, folder / "bars.h5")
    shutil.copy(tiny_data.test, folder / "bars.test.h5")
    teacher, test = folder / "teacher" / "weights.safetensors", folder / "bars.test.h5"
    small = InitBankSettings(batches=1, batch_size=8, steps=1, width=8, latent_size=8, precision="reference")
    init_bank(teacher, small, folder / "init.lmdb", folder / "state", reference)
    run = folder / "runs" / "dda" / "bars_wrn101_wrn101" / "seed0"
    settings = DDASettings(
        epochs=1, kd_steps=1, rounds=1, warmup=0, batch_size=8, synthesis_batch_size=4, g_steps=1, precision="reference"
    )
    distill(
        teacher, [folder / "init.lmdb"], "wrn101", test, settings, 0, run / "student.safetensors", folder / "state", reference
    )
    evaluate([run / "student.safetensors"], test, EvaluateSettings(), reference, teacher=teacher, output=run, pictures=False)
    costs = {"distill": [run / "cost.json"]}
    artefacts = {"teacher": teacher}
    collect("bars", "wrn101", "wrn101", "dda", [run / "metrics.json"], costs, artefacts, None, "0" * 64, folder / "result.json")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), 40 * number).save(folder / "images" / split / name / f"{number}.png")
    for label in range(3):
        (folder / "pictures" / str(label)).mkdir(parents=True)
        Image.new("L", (8, 8), 70 * label).save(folder / "pictures" / str(label) / "image.png")
    shutil.copytree(ROOT / "config", folder / "config")


def truncate(path: Path, random: Random) -> None:
    """Cut the file somewhere."""
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def empty(path: Path, random: Random) -> None:
    """Leave nothing of it."""
    path.write_bytes(b"")


def noise(path: Path, random: Random) -> None:
    """Random bytes instead."""
    path.write_bytes(random.randbytes(random.choice([1, 17, 4096, 9001])))


def text(path: Path, random: Random) -> None:
    """A text instead."""
    path.write_text(
        random.choice(["<html>404</html>", "version https://git-lfs.github.com/spec/v1\n", "nan", "{}", "[]", "null", "\x00"])
    )


def flip_head(path: Path, random: Random) -> None:
    """Change a byte among the first ones, where the format says what it is."""
    content = bytearray(path.read_bytes())
    content[random.randrange(8)] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def flip(path: Path, random: Random) -> None:
    """Change one bit anywhere: for files that carry a checksum."""
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def folder_instead(path: Path, random: Random) -> None:
    """A folder has its name."""
    path.unlink()
    path.mkdir()


def remove(path: Path, random: Random) -> None:
    """It is not there."""
    path.unlink()


def dangling(path: Path, random: Random) -> None:
    """A link to nowhere, or to itself, has its name."""
    path.unlink()
    path.symlink_to(random.choice(["/nowhere/at/all", path.name]))


def spoil_json(path: Path, random: Random) -> None:
    """A key is gone, or its value is of another kind: at any depth."""
    content = json.loads(path.read_text())
    places = [place for place in _places(content) if not _free(place)]
    *way, key = random.choice(places)
    inner = content
    for step in way:
        inner = inner[step]
    if isinstance(key, str) and random.random() < 0.4:
        del inner[key]
    else:
        inner[key] = _other(inner[key], random)
    path.write_text(json.dumps(content))


def _places(content, way=()):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*way, key)
        yield from _places(value, (*way, key))


def _free(place) -> bool:
    """Parts of a card or a result that may hold anything, or may be absent."""
    optional = {"settings", "metrics", "versions", "revision", "lineage", "notes", "params", "format_version", "data_free"}
    return bool(optional & set(map(str, place)))


def _other(value, random: Random):
    kinds = [None, "rubbish", -1.5, [], {}, [[[]]], {"a": {"b": []}}]
    return random.choice(
        [
            kind
            for kind in kinds
            if type(kind) is not type(value) and not (kind is None or (isinstance(value, float) and isinstance(kind, float)))
        ]
    )


def spoil_yaml(path: Path, random: Random) -> None:
    """A setting has a kind, a range or a name that is not its own, or the file is no YAML."""
    content = yaml.safe_load(path.read_text()) or {}
    spoilt = random.randrange(6)
    if spoilt == 0:
        path.write_text(random.choice(["a: [", "\t- x", "{", "a: b: c", "%YAML 9", "&a *b", "!!python/object:os.system {}"]))
        return
    if spoilt == 1:
        path.write_text(random.choice(["- 1\n- 2\n", "just words\n", "3\n"]))
        return
    places = [place for place in _places(content) if all(isinstance(step, str) for step in place)]
    *way, key = random.choice(places)
    inner = content
    for step in way:
        inner = inner[step]
    if spoilt == 2:
        inner[f"{key}zz"] = inner[key]
    else:
        inner[key] = random.choice([{"no": {"such": "thing"}}, [["x"]], float("nan"), -(10**9), "\u0000"])
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
