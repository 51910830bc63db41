"""A run, a teacher or a teacher's banks to look at: one HTML page that loads nothing, and the learning curves as PNG.

While the stage still goes on, the page shows what is there: the history so far, and the images that the run has made.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfkd.errors import UserError
from dfkd.evaluation.commands import Place, bank_command, place_of, target_command, weights_command
from dfkd.evaluation.curves import Curves, charts_of, find_histories, heading_of
from dfkd.evaluation.formats import MetricsFile, read_metrics
from dfkd.evaluation.picture_names import EVALUATION_PICTURES
from dfkd.evaluation.plots import draw_history
from dfkd.evaluation.show import ROWS, duration, size
from dfkd.files import read_json
from dfkd.pages import picture_uri, write_page

CARD_KEYS = {"architecture", "dataset", "stage", "stage_version", "settings", "seed", "params", "lineage", "versions"}
CARD_KEYS |= {"revision", "sha256"}
COUNTS = (("images", "images synthesised"), ("teacher_queries", "teacher queries"), ("optimiser_steps", "optimiser steps"))
Facts = list[tuple[str, Any]]


@dataclass
class Report:
    """What the page shows of a folder."""

    title: str
    about: str = ""
    figures: list[tuple[str, str, str]] = field(default_factory=list)  # name, value, note
    pictures: list[tuple[str, str, str]] = field(default_factory=list)  # title, data URI, caption
    facts: Facts = field(default_factory=list)
    settings: list[tuple[str, Facts]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def write_report(folder: Path, output: Path | None = None) -> list[Path]:
    """Write `report.html`, `summary.html` and, of each history, its curves as PNG; their paths.

    The summary has the curves as pictures and leaves the images away: small enough to be sent, and for `snakemake --report`.

    Args:
        folder: of a run, a teacher or a teacher's banks; its stage may still be going on.
        output: the folder to write to; the same if None.

    Raises:
        UserError: there is no history, or a file of the folder is broken.
    """
    output = folder if output is None else output
    histories = find_histories(folder)
    place = place_of(folder)
    report = _of_banks(folder, place) if any(curves.name for curves in histories) else _of_weights(folder, place, histories[0])
    paths = [output / curves.png for curves in histories]
    for curves, path in zip(histories, paths, strict=True):
        draw_history(curves.columns, path)
    going_on = [f"{curves.counter} {curves.columns[curves.counter][-1]:g}" for curves in histories if not curves.finished]
    content = vars(report) | {
        "going_on": ", ".join(going_on),
        "page_command": f"dfkd report {place.folder if place else 'FOLDER'}",
    }
    charts = [(heading_of(curves), charts_of(curves)) for curves in histories]
    drawn = [(heading_of(curves), picture_uri(path)) for curves, path in zip(histories, paths, strict=True)]
    page, summary = output / "report.html", output / "summary.html"
    write_page(page, "report.html", **content, charts=charts, drawn=[])
    write_page(summary, "report.html", **content | {"pictures": []}, charts=[], drawn=drawn)
    return [page, summary, *paths]


# -- what a folder says of itself --------------------------------------------------------------------------------------


def _of_weights(folder: Path, place: Place | None, curves: Curves) -> Report:
    """A run of a method, a student from scratch, or a teacher."""
    file = next((name for name in ("student", "weights") if (folder / f"{name}.json").exists()), None)
    card = _card(folder / f"{file}.json") if file else None
    metrics = read_metrics(folder / "metrics.json") if (folder / "metrics.json").exists() else None
    teacher = place.teacher if place else metrics.teacher.name if metrics and metrics.teacher else ""
    report = _headed(folder, place, card, teacher)
    report.figures += _accuracies(curves)
    cost = read_json(folder / "cost.json") if (folder / "cost.json").exists() else {}
    report.figures += _costs(cost, curves)
    if metrics is not None:
        report.settings.append(("On the test split, last epoch", _measured(metrics)))
    if card is not None:
        report.facts = _provenance(card, cost)
        report.settings.append(("Settings", [*card["settings"].items()]))
        report.settings.append(("Versions", [*card["versions"].items()]))
    report.pictures = _run_pictures(folder, place)
    name = file or ("weights" if place and place.kind == "teachers" else "student")
    if place is not None:
        report.commands.append(target_command(place, f"{name}.safetensors"))
    own = weights_command(place, card, teacher, f"{name}.safetensors") if card is not None else None
    report.commands += [own] if own else []
    return report


def _card(path: Path) -> dict[str, Any]:
    """A card as JSON: its class would bring torch along, which takes longer than the page."""
    card = read_json(path)
    if not isinstance(card, dict) or not card.keys() >= CARD_KEYS:
        raise UserError(f"{path}: not a card of this project's weights; name the folder of a run or a teacher that dfkd made.")
    return card


def _headed(folder: Path, place: Place | None, card: Mapping[str, Any] | None, teacher: str) -> Report:
    """Title and first sentence, from the card, or from the place of a run that has none yet."""
    if card is not None:
        dataset, seed, network = card["dataset"]["name"], card["seed"], card["architecture"]
        method = card["stage"].removeprefix("distill ")
    elif place is not None:
        dataset, seed, network = place.dataset, place.seed, place.student or place.teacher
        method = place.method or "teacher"
    else:
        return Report(folder.resolve().name)
    parameters = f", {card['params']:,} parameters" if card else ""
    if method not in ("teacher", "scratch"):
        notes = "".join(f" {key.replace('_', ' ')}: {value}." for key, value in (card or {}).get("notes", {}).items())
        arrow = f"{teacher} → {network}" if teacher else network
        return Report(f"{dataset}: {arrow} by {method}, seed {seed}", f"Student {network}{parameters}.{notes}")
    if place is not None and place.method == "scratch":
        about = f"Student {network}{parameters}, trained on the real images without a teacher."
        return Report(f"{dataset}: {network} from scratch, seed {seed}", about)
    return Report(f"{dataset}: teacher {network}", f"Trained on the real images, seed {seed}{parameters}.")


def _accuracies(curves: Curves) -> list[tuple[str, str, str]]:
    """Last and best of what the history measured on the test split."""
    found = []
    counts = curves.columns[curves.counter]
    for key, name in (("acc1", "Acc@1"), ("agree1", "Agree@1")):
        values = [(value, count) for value, count in zip(curves.columns.get(key, []), counts, strict=False) if value == value]
        if not values:
            continue
        best = max(values, key=lambda pair: pair[0])
        last = f"last {curves.counter}, {values[-1][1]:g}" if curves.finished else f"{curves.counter} {values[-1][1]:g}, so far"
        found.append((name, f"{values[-1][0]:.2f} %", last))
        found.append((f"{name}, best", f"{best[0]:.2f} %", f"{curves.counter} {best[1]:g}"))
    return found


def _costs(cost: Mapping[str, Any], curves: Curves) -> list[tuple[str, str, str]]:
    """What the stage took. Before its end, only the time of the rows so far is known."""
    seconds = sum(curves.times.get("seconds", []))
    images = sum(curves.times.get("images", []))
    found = []
    if cost:
        found.append(("time", duration(cost["seconds"]), f"peak memory {size(cost['peak_memory'])}"))
        found += [(name, f"{cost[key]:,}", "") for key, name in COUNTS if cost.get(key)]
    elif seconds:
        found.append(("time", duration(seconds), "so far"))
    if seconds:
        found.append(
            ("images/s", f"{images / seconds:,.0f}", "mean; trained on, syntheses included" if not curves.name else "mean")
        )
    return found


def _measured(metrics: MetricsFile) -> Facts:
    """The figures of metrics.json: last epoch, and the best epoch's Acc@1."""
    facts: Facts = []
    for key, name, decimals, unit in ROWS:
        value = (metrics.best.acc1 if metrics.best else None) if key == "best_acc1" else getattr(metrics.last, key)
        if value is not None:
            facts.append((name, f"{value:.{decimals}f}{unit}"))
    if metrics.teacher is not None:
        facts.append((f"teacher {metrics.teacher.name}, Acc@1", f"{metrics.teacher.acc1:.2f} %"))
    return facts


def _provenance(card: Mapping[str, Any], cost: Mapping[str, Any]) -> Facts:
    facts: Facts = [("stage", f"{card['stage']}, version {card['stage_version']}"), ("seed", card["seed"])]
    facts += [("weights, SHA-256", card["sha256"])]
    for name, value in card["lineage"].items():
        facts.append((f"{name}, {'BLAKE2b' if name.startswith('packed ') else 'SHA-256'}", value))
    facts += [("source revision", card["revision"])]
    if "hardware" in cost:
        facts.append(("hardware", ", ".join(f"{key} {value}" for key, value in cost["hardware"].items())))
    return facts


def _run_pictures(folder: Path, place: Place | None) -> list[tuple[str, str, str]]:
    found = []
    if (folder / "bank.png").exists():
        found.append(
            ("What the run synthesised", picture_uri(folder / "bank.png"), "The first images of its own bank, by class.")
        )
    elif place is not None and (so_far := _bank_so_far(folder, place)) is not None:
        found.append(
            ("What the run has synthesised so far", picture_uri(so_far), "The first images of its own bank, by class.")
        )
    drawn = [(title, folder / f"{name}.png") for name, title in EVALUATION_PICTURES.items()]
    return found + [
        (title[0].upper() + title[1:], picture_uri(path), "On the test split, last epoch.")
        for title, path in drawn
        if path.exists()
    ]


def _bank_so_far(folder: Path, place: Place) -> bytes | None:
    """A contact sheet of the bank that the run is still writing, if it has images."""
    levels = len(Path(place.folder).parts) - 1
    bank = folder.resolve().parents[levels - 1] / Path(place.checkpoints).relative_to("results") / "bank.lmdb"
    if not bank.exists():
        return None
    from dfkd.bank.grid import contact_sheet
    from dfkd.bank.reader import BankReader

    with tempfile.TemporaryDirectory() as own:
        try:
            if not len(BankReader(bank, allow_incomplete=True)):
                return None
            contact_sheet(bank, Path(own) / "bank.png")
        except UserError:  # finished or cut back meanwhile
            return None
        return (Path(own) / "bank.png").read_bytes()


def _of_banks(folder: Path, place: Place | None) -> Report:
    """The init bank and the variations of a teacher."""
    from dfkd.bank.reader import BankReader

    title = f"{place.dataset}: banks of {place.teacher}" if place else f"Banks in {folder.resolve().name}"
    report = Report(title, "Images inverted from the teacher, and their diffusion variations.")
    for stem, stage in (("init", "init-bank"), ("variations", "augment")):
        path = folder / f"{stem}.lmdb"
        if path.exists():
            meta = BankReader(path).meta
            report.figures.append((f"{stem} bank", f"{meta.images:,}", "images"))
            if meta.extra.get("accept_rate") is not None:
                report.figures.append(("accepted", f"{100 * meta.extra['accept_rate']:.1f} %", "by the fidelity filter"))
            facts = [(f"{stem}: stage", f"{meta.stage}, version {meta.stage_version}"), (f"{stem}: seed", meta.seed)]
            report.facts += [*facts, (f"{stem}: teacher, SHA-256", meta.teacher_sha256)]
            report.settings.append((f"Settings of {stage}", [*meta.settings.items()]))
            report.commands.append(bank_command(place, stage, meta.settings))
        if place is not None:
            report.commands.append(target_command(place, f"{stem}.lmdb"))
        if stem == "variations" and (folder / "variations.cost.json").exists():
            cost = read_json(folder / "variations.cost.json")
            report.figures.append(
                ("time of the variations", duration(cost["seconds"]), cost.get("hardware", {}).get("name", ""))
            )
    for name, heading, caption in (
        ("init", "Init bank", "The first images of each class."),
        ("variations", "Variations", "Each parent before its variations."),
        ("filter", "Fidelity filter", "Cosine between a variation and its parent, and the share that was accepted."),
    ):
        if (folder / f"{name}.png").exists():
            report.pictures.append((heading, picture_uri(folder / f"{name}.png"), caption))
    return report
