"""Campaigns: methods × data sets × pairs × seeds of which one page is made, config/campaigns/NAME.yaml. Imports no torch.

docs/campaigns.md is for users. The workflow runs a campaign, `dfkd.evaluation.campaign` gathers it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from dfkd.config import Config, check_dataset, check_model, load_config, parse, read_yaml
from dfkd.errors import UserError, nearest
from dfkd.methods import METHODS
from dfkd.settings import Settings

FOLDER = "campaigns"  # below the configuration and below results/
SCRATCH = "scratch"  # the student without a teacher: no method, but a row of a campaign
PAIR = "^[a-z0-9]+_[a-z0-9]+$"


def _spelled_out(seeds: Any) -> Any:
    """`3` as [0, 1, 2]."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError("at least one seed is needed")
        return list(range(seeds))
    return seeds


def _two_models(pair: str) -> str:
    if not re.fullmatch(PAIR, pair):
        raise ValueError("a pair is teacher_student, and models have no '_' (WRN-40-2 is wrn402)")
    return pair


Pair = Annotated[str, AfterValidator(_two_models), WithJsonSchema({"type": "string", "pattern": PAIR})]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[
    list[Seed],
    Field(min_length=1),
    BeforeValidator(
        _spelled_out, json_schema_input_type=Annotated[int, Field(ge=1)] | Annotated[list[Seed], Field(min_length=1)]
    ),
]


@dataclass(frozen=True)
class Cell:
    """One method on one data set and pair. `scratch` has a teacher here too: the pair beside whose methods it stands."""

    method: str
    dataset: str
    teacher: str
    student: str

    @property
    def pair(self) -> str:
        """`teacher_student`, as a campaign writes it."""
        return f"{self.teacher}_{self.student}"

    @property
    def target(self) -> str:
        """`dataset_teacher_student`; the teacher is left away for `scratch`, which has none."""
        parts = (self.dataset, self.student) if self.method == SCRATCH else (self.dataset, self.teacher, self.student)
        return "_".join(parts)


class Exclusion(Settings):
    """Cells that are left out: those that fit every name that is given."""

    method: str | None = Field(None, description="of this method")
    dataset: str | None = Field(None, description="on this data set")
    pair: Pair | None = Field(None, description="of this pair, `teacher_student`")
    reason: str = Field("", description="why; the page says it")

    @model_validator(mode="after")
    def _names_something(self) -> Exclusion:
        if self.method is None and self.dataset is None and self.pair is None:
            raise ValueError("an exclusion must name a method, a dataset or a pair")
        return self

    @property
    def names(self) -> str:
        """What it names, such as `dafl, wrn402_wrn161`."""
        return ", ".join(name for name in (self.method, self.dataset, self.pair) if name is not None)

    def fits(self, cell: Cell) -> bool:
        """Whether the cell is left out."""
        wanted = ((self.method, cell.method), (self.dataset, cell.dataset), (self.pair, cell.pair))
        return all(name in (None, own) for name, own in wanted)


class Campaign(Settings):
    """config/campaigns/NAME.yaml."""

    title: str = Field(min_length=1, description="heading of the page")
    description: str = Field("", description="what the campaign is for; the page says it")
    methods: list[str] = Field(
        min_length=1, description="in the order of the page; `scratch`, the student without a teacher, is allowed"
    )
    datasets: list[str] = Field(min_length=1, description="entries of config/datasets.yaml")
    pairs: list[Pair] = Field([], description="`teacher_student`; or else `teachers` and `students`")
    teachers: list[str] = Field([], description="each of them with each of `students`")
    students: list[str] = Field([], description="see `teachers`")
    seeds: Seeds | None = Field(
        None, description="of the students, or their number (3 is [0, 1, 2]); those of config.yaml if not given"
    )
    exclude: list[Exclusion] = Field([], description="cells that are left out")

    @model_validator(mode="after")
    def _consistent(self) -> Campaign:
        for name in ("methods", "datasets", "pairs", "teachers", "students", "seeds"):
            values = getattr(self, name)
            if isinstance(values, list) and len(set(values)) != len(values):
                raise ValueError(f"the {name} must differ from each other")
        if bool(self.pairs) == bool(self.teachers or self.students) or bool(self.teachers) != bool(self.students):
            raise ValueError("give either pairs, or both teachers and students")
        for exclusion in self.exclude:
            if not any(exclusion.fits(cell) for cell in self._product()):
                raise ValueError(f"the exclusion of {exclusion.names} leaves out nothing")
        if not self.cells():
            raise ValueError("everything is excluded")
        return self

    def columns(self) -> list[tuple[str, str, str]]:
        """Data set, teacher and student of each column of the page."""
        pairs = [tuple(pair.split("_")) for pair in self.pairs]
        pairs = pairs or [(teacher, student) for teacher in self.teachers for student in self.students]
        return [(dataset, *pair) for dataset in self.datasets for pair in pairs]  # type: ignore[misc]

    def cells(self) -> list[Cell]:
        """What is run: column by column, the methods in their order, without what is excluded."""
        return [cell for cell in self._product() if self.exclusion(cell) is None]

    def exclusion(self, cell: Cell) -> Exclusion | None:
        """The first exclusion that leaves out this cell."""
        return next((exclusion for exclusion in self.exclude if exclusion.fits(cell)), None)

    def _product(self) -> list[Cell]:
        return [Cell(method, *column) for column in self.columns() for method in self.methods]

    @property
    def own_seeds(self) -> list[int]:
        """The seeds; `check_campaign` has put in those of the config where the file gives none."""
        assert self.seeds is not None
        return self.seeds


def result_file(name: str, cell: Cell) -> str:
    """Where the campaign's own result of a cell lies: its seeds need not be those of the config, which plain results have."""
    return f"results/{FOLDER}/{name}/{cell.method}/{cell.target}.json"


def comparison_file(name: str, column: Sequence[str]) -> str:
    """Where the comparison of a column's methods lies."""
    return f"results/{FOLDER}/{name}/compare/{'_'.join(column)}.html"


def campaign_names(folder: str | Path) -> list[str]:
    """The campaigns of a configuration folder."""
    return sorted(path.stem for path in (Path(folder) / FOLDER).glob("*.yaml"))


def find_campaign(name: str, folder: str | Path, config: Config) -> Campaign:
    """The campaign of this name in a configuration folder; an unknown name is a `UserError` with the nearest known names."""
    path = Path(folder) / FOLDER / f"{name}.yaml"
    if not path.exists():
        names = campaign_names(folder)
        known = f"{nearest(name, names)}. A campaign is a file {path}" if names else f"write {path}"
        raise UserError(f"unknown campaign '{name}'; {known}.")
    return check_campaign(read_yaml(path), str(path), config)


def read_campaign(text: str, name: str, folder: str | Path) -> tuple[str, Campaign]:
    """A campaign that is given on the command line, and its name.

    Args:
        text: its content as JSON, a path that ends in .yaml, or a name in the configuration folder.
        name: of a campaign given as JSON.
        folder: the configuration; not read for JSON, which has to give the seeds.
    """
    if text.lstrip().startswith("{"):
        try:
            return name, check_campaign(json.loads(text), f"campaign {name}")
        except json.JSONDecodeError as error:
            raise UserError(f"campaign: not valid JSON ({error}).") from None
    config = load_config(folder)
    if Path(text).suffix in (".yaml", ".yml"):
        return Path(text).stem, check_campaign(read_yaml(text), text, config)
    return text, find_campaign(text, folder, config)


def check_campaign(values: Any, where: str, config: Config | None = None) -> Campaign:
    """Validate a campaign, its names included.

    Args:
        values: content of the file.
        where: begins the sentence of an error.
        config: knows the data sets and the seeds of a campaign that names none; without it, the seeds must be given and
            the data sets pass unseen.

    Raises:
        UserError: names the fault and, for an unknown name, the nearest known ones.
    """
    campaign: Campaign = parse(Campaign, values, where)  # type: ignore[assignment]
    try:
        for method in campaign.methods:
            if method not in METHODS and method != SCRATCH:
                raise UserError(f"unknown method '{method}'; {nearest(method, (*METHODS, SCRATCH))}.")
        for _, teacher, student in campaign.columns():
            check_model(teacher)
            check_model(student)
        if config is not None:
            for dataset in campaign.datasets:
                check_dataset(dataset, config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if campaign.seeds is not None:
        return campaign
    if config is None:
        raise UserError(f"{where}: seeds: missing; there is no configuration to take them from.")
    return campaign.model_copy(update={"seeds": config.seeds})
