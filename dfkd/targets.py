"""What a target of the workflow names: data set, models, method; checked before the DAG is built. Imports no torch."""

from __future__ import annotations

import re

from dfkd.config import Config, check_dataset, check_model
from dfkd.errors import UserError, nearest
from dfkd.methods import METHODS

COMPARISON = re.compile(r"results/compare/(?P<target>[^/.]+)\.(?:html|csv|png)"), 3
SCRATCH = re.compile(r"results/scratch/(?P<target>[^/]+)\.json"), 2
RESULT = re.compile(r"results/(?:(?P<method>[^/]+)/)?(?P<target>[^/]+)\.json")
# Other files that a user may ask for by name: the pattern, and how many names its target holds.
OTHERS = (
    (re.compile(r"data/(?P<target>[^/.]+)(?:\.test)?\.h5"), 1),
    (re.compile(r"results/runs/scratch/(?P<target>[^/]+)/.+"), 2),
    (re.compile(r"results/(?:teachers|banks)/(?P<target>[^/]+)/.+"), 2),
    (re.compile(r"results/runs/(?P<method>[^/]+)/(?P<target>[^/]+)/.+"), 3),
)
FORMS = {
    1: "data/DATASET.h5",
    2: "results/teachers/DATASET_TEACHER/…, results/banks/DATASET_TEACHER/… or results/scratch/DATASET_STUDENT.json",
    3: "results/DATASET_TEACHER_STUDENT.json, results/METHOD/DATASET_TEACHER_STUDENT.json or "
    "results/compare/DATASET_TEACHER_STUDENT.html (of a list: LIST_DATASET_TEACHER_STUDENT)",
}


def check_target(path: str, config: Config) -> None:
    """Refuse a target whose data set, model or method is unknown; paths of another form, and rule names, pass.

    Raises:
        UserError: names the part that is unknown and its nearest known relatives.
    """
    for pattern, count in (SCRATCH, (RESULT, 3), COMPARISON, *OTHERS):
        match = pattern.fullmatch(path.removeprefix("./"))
        if match:
            names = match.groupdict()
            target = names["target"]
            if pattern is COMPARISON[0]:
                target = _without_list(path, target, config)
            _check_names(path, target, count, config)
            method = names.get("method")
            if method == "compare":  # a folder beside those of the methods, none of which has this name
                raise UserError(
                    f"{path}: a comparison is {path.removesuffix('.json')}.html, .csv or .png; ask for one of these."
                )
            if method and method not in METHODS:
                raise UserError(f"{path}: unknown method '{method}'; {nearest(method, METHODS)}.")
            return


def _without_list(path: str, target: str, config: Config) -> str:
    """The target of a comparison without the name of a list before it. A `UserError` for a list that nobody knows."""
    name, _, rest = target.partition("_")
    if name in config.comparisons:
        return rest
    if name not in config.datasets and rest.split("_")[0] in config.datasets:
        raise UserError(f"{path}: unknown comparison '{name}'; {nearest(name, config.comparisons)}.")
    return target


def _check_names(path: str, target: str, count: int, config: Config) -> None:
    names = target.split("_")
    if len(names) != count:
        meant = simplify(target)
        offer = f"; did you mean {path.replace(target, meant)}?" if len(meant.split("_")) == count else "."
        raise UserError(f"{path}: a target is {FORMS[count]}, and the names in it hold no '_' (WRN-40-2 is wrn402){offer}")
    try:
        check_dataset(names[0], config)
        for model in names[1:]:
            check_model(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def simplify(target: str) -> str:
    """The target as it is likely meant: `cifar10_WRN-40_2_wrn16-1` becomes `cifar10_wrn402_wrn161`."""
    return re.sub(r"_(?=\d)", "", target.lower().replace("-", ""))
