"""A campaign gathered from its result files: a matrix of methods and pairs, what it took, what is missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dfkd.campaigns import SCRATCH, Campaign, Cell, comparison_file, result_file
from dfkd.errors import UserError
from dfkd.evaluation.compare import Row, csv_cell
from dfkd.evaluation.formats import Amounts, ResultFile, StageCost, read_result
from dfkd.evaluation.gather import Found, Group, group_results
from dfkd.evaluation.show import sum_known
from dfkd.files import atomic_path

State = Literal["done", "missing", "excluded"]


SHARED = ("teacher", "init-bank", "augment")  # stages that serve all methods and students of a teacher
ORDER = (*SHARED, "distill", SCRATCH, "evaluate")


@dataclass(frozen=True)
class Place:
    """A cell of the matrix, with its result if there is one."""

    cell: Cell
    file: Path  # below the folder `results`
    state: State
    reason: str = ""  # of an exclusion, or why a file does not count
    result: ResultFile | None = None
    row: Row | None = None
    best: bool = False  # the others of its column are held against it

    @property
    def page(self) -> Path:
        """The result's tables as a page, below the folder `results`; it need not be there."""
        return self.file.with_suffix(".html")


@dataclass(frozen=True)
class Column:
    """One data set and pair: a place a method, in the campaign's order."""

    dataset: str
    teacher: str
    student: str
    places: list[Place]
    teacher_acc1: float | None  # percent; None while no result says it
    note: str  # what must be known to compare the results; empty for most
    comparison: Path  # of the methods, below the folder `results`; it need not be there

    def row(self, method: str) -> Row | None:
        """The figures of a method, if they are there."""
        return next((place.row for place in self.places if place.cell.method == method), None)


@dataclass(frozen=True)
class StageTotal:
    """What a stage took in all of a campaign; a job that several results share is counted once."""

    stage: str
    jobs: int
    amounts: Amounts


@dataclass(frozen=True)
class Gathered:
    """A campaign and what there is of it."""

    name: str
    campaign: Campaign
    columns: list[Column]
    totals: list[StageTotal]
    groups: list[Group]

    @property
    def places(self) -> list[Place]:
        """Every place of the matrix, column by column."""
        return [place for column in self.columns for place in column.places]

    @property
    def missing(self) -> list[Place]:
        """Places whose results are wanted and not there; that of a student from scratch once."""
        found = {place.file: place for place in self.places if place.state == "missing"}
        return list(found.values())

    @property
    def done(self) -> int:
        """Results that are there; that of a student from scratch once."""
        return len({place.file for place in self.places if place.state == "done"})


def gather(name: str, campaign: Campaign, results: Path) -> Gathered:
    """Read a campaign's results; what is not there, or not of its seeds, is missing.

    Args:
        name: of the campaign: its results lie in `results`/campaigns/NAME.
        campaign: with its seeds.
        results: the folder `results`. A plain result in it counts where the campaign has none and the seeds are the same.
    """
    columns, groups = list[Column](), list[Group]()
    everything: dict[Path, ResultFile] = {}
    for dataset, teacher, student in campaign.columns():
        places = [_place(name, campaign, Cell(method, dataset, teacher, student), results) for method in campaign.methods]
        found = [Found(results / place.file, place.result) for place in places if place.result is not None]
        everything |= {item.path: item.result for item in found}
        own = group_results(found)  # one, but for results of teachers with other weights
        groups += own
        columns.append(_column(name, places, own))
    return Gathered(name, campaign, columns, total_costs(list(everything.values())), groups)


def _place(name: str, campaign: Campaign, cell: Cell, results: Path) -> Place:
    """A place with its result, without its figures."""
    own, reason = Path(result_file(name, cell)).relative_to("results"), ""
    exclusion = campaign.exclusion(cell)
    if exclusion is not None:
        return Place(cell, own, "excluded", exclusion.reason)
    for file in (own, Path(cell.method, f"{cell.target}.json")):
        if (results / file).exists():
            try:
                result = read_result(results / file)
            except UserError as error:
                reason = reason or f"{file}: {str(error).removeprefix(f'{results / file}: ')}"
                continue
            if sorted(result.seeds) == sorted(campaign.own_seeds):
                return Place(cell, file, "done", result=result)
            if file == own:
                reason = f"{file}: of the seeds {', '.join(map(str, result.seeds))}; make it again."
    return Place(cell, own, "missing", reason)


def _column(name: str, places: Sequence[Place], groups: Sequence[Group]) -> Column:
    """The column of these places, whose results are in these groups."""
    cell = places[0].cell
    notes = [group.note for group in groups if group.note]
    if len(groups) > 1:
        notes.append("results of teachers with other weights stand beside each other; make the older ones again")
    entries = {entry.row.method: entry for group in groups for entry in group.entries}
    filled = []
    for place in places:
        entry = entries.get(place.cell.method)
        filled.append(place if entry is None else replace(place, row=entry.row, best=entry.best))
    teachers = [summary.acc1 for group in groups if (summary := group.first.teacher) is not None]
    page = Path(comparison_file(name, (cell.dataset, cell.teacher, cell.student))).relative_to("results")
    acc1 = teachers[0] if teachers else None
    return Column(cell.dataset, cell.teacher, cell.student, filled, acc1, "; ".join(notes), page)


def total_costs(results: Sequence[ResultFile]) -> list[StageTotal]:
    """What each stage took in all of these results, in the order of the pipeline.

    A stage that serves several results (a teacher, its banks) says the same in all of them and is counted once.
    """
    stages: dict[str, dict[tuple[str, str], StageCost]] = {}
    for result in results:
        for stage, cost in result.cost.items():
            teacher = result.teacher.name if result.teacher else ""
            own = "" if stage in SHARED else f"{result.student.name}_{result.method}"
            stages.setdefault(stage, {})[f"{result.dataset}_{teacher}_{own}", cost.model_dump_json()] = cost
    order = [stage for stage in ORDER if stage in stages] + sorted(set(stages) - set(ORDER))
    return [add_up(stage, [(cost.jobs, cost) for cost in stages[stage].values()]) for stage in order]


def add_up(stage: str, parts: Sequence[tuple[int, Amounts]]) -> StageTotal:
    """The sum of numbers of jobs and what they took; of the peaks of memory the largest."""
    keys = ("seconds", "images", "teacher_queries", "optimiser_steps")
    amounts = [own for _, own in parts]
    sums: dict[str, Any] = {key: sum(getattr(own, key) for own in amounts) for key in keys}
    peak, joules = max(own.peak_memory for own in amounts), sum_known(own.energy for own in amounts)
    return StageTotal(stage, sum(jobs for jobs, _ in parts), Amounts(**sums, peak_memory=peak, energy=joules))


def write_csv(gathered: Gathered, path: Path) -> None:
    """A line a place, every figure unrounded; empty where there is none."""
    text = io.StringIO()
    figures = [name for name in Row.__dataclass_fields__ if name != "method"]
    fields = ["campaign", "dataset", "teacher", "student", "method", "state", "reason", "teacher_acc1", *figures, "file"]
    writer = csv.DictWriter(text, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for column in gathered.columns:
        for place in column.places:
            values = {"campaign": gathered.name, **asdict(place.cell), "state": place.state, "reason": place.reason}
            values |= {"teacher_acc1": column.teacher_acc1} | ({} if place.row is None else asdict(place.row))
            values["file"] = place.file.as_posix()
            writer.writerow({key: csv_cell(value) for key, value in values.items()})
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
