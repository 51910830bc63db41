"""Conditions on images, as a user types them: `label_probability < 0.5 and label in (cat, dog)`."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfkd.errors import UserError, nearest

COMPARISONS: dict[type[ast.cmpop], Any] = {
    ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal,
    ast.Eq: np.equal, ast.NotEq: np.not_equal,
}  # fmt: skip
OF_CLASSES = ("label", "prediction")  # columns that are compared with names of classes
LONGEST = 1000  # characters; nobody types more, and nested parentheses stay harmless


def select(condition: str, columns: Mapping[str, np.ndarray], classes: Sequence[str]) -> np.ndarray:
    """The images for which a condition holds, as bool [N].

    Comparisons (`<`, `<=`, `>`, `>=`, `==`, `!=`, chained too, `in`, `not in`) of columns with numbers, names of classes (in
    quotes where they are no plain words) or other columns, joined by `and`, `or`, `not` and parentheses. `index` is the
    image's place in the bank. Nothing else of Python is understood; an empty condition holds for all.

    Raises:
        UserError: it cannot be read, or names an unknown column or class.
    """
    count = len(next(iter(columns.values()))) if columns else 0
    known = {"index": np.arange(count), **columns}
    text = condition.strip()
    if not text:
        return np.ones(count, dtype=bool)
    return _Reader(text, known, classes).truth(_parsed(text, classes))


def names_in(condition: str, classes: Sequence[str]) -> set[str]:
    """The words of a condition: columns and names of classes. One that cannot be read is a `UserError`."""
    text = condition.strip()
    return {node.id for node in ast.walk(_parsed(text, classes)) if isinstance(node, ast.Name)} if text else set()


def _parsed(text: str, classes: Sequence[str]) -> ast.expr:
    if len(text) > LONGEST:
        raise UserError(f"condition of {len(text)} characters: longer than {LONGEST}; shorten it.")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise UserError(
            f"condition '{text}': cannot be read; write e.g. label == {_word(classes)} and confidence < 0.5."
        ) from None


def _word(classes: Sequence[str]) -> str:
    first = classes[0] if classes else "0"
    return first if first.isidentifier() or first.isdecimal() else f"'{first}'"


class _Reader:
    def __init__(self, text: str, columns: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
        self.text, self.columns, self.classes = text, columns, classes

    def truth(self, node: ast.expr) -> np.ndarray:
        """A condition → bool [N]."""
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            result: np.ndarray = join.reduce([self.truth(part) for part in node.values])
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.truth(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            parts = [self._compared(*three) for three in zip(sides, node.ops, sides[1:], strict=False)]
            return np.logical_and.reduce(parts)
        raise self._fault(node, "is no comparison")

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> np.ndarray:
        of_classes = any(isinstance(side, ast.Name) and side.id in OF_CLASSES for side in (left, right))
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise self._fault(right, "is no list; write e.g. label in (0, 1)")
            members = [self._value(item, of_classes) for item in right.elts]
            inside = np.isin(self._value(left, of_classes), members)
            return self._of_all(~inside if isinstance(operator, ast.NotIn) else inside)
        if type(operator) not in COMPARISONS:
            raise self._fault(left, "is compared by `is`; write ==")
        return self._of_all(COMPARISONS[type(operator)](self._value(left, of_classes), self._value(right, of_classes)))

    def _of_all(self, truth: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(truth, dtype=bool), self.columns["index"].shape)

    def _value(self, node: ast.expr, of_classes: bool) -> Any:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand, of_classes)
        if isinstance(node, ast.Name) and node.id in self.columns:
            return self.columns[node.id]
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        if isinstance(name, str):
            if of_classes and name in self.classes:
                return list(self.classes).index(name)
            known = [*self.columns, *(self.classes if of_classes else ())]
            raise UserError(
                f"condition '{self.text}': no column{' or class' if of_classes else ''} '{name}'; {nearest(name, known)}."
            )
        raise self._fault(node, "is neither a column nor a number")

    def _fault(self, node: ast.expr, what: str) -> UserError:
        return UserError(f"condition '{self.text}': '{ast.unparse(node)}' {what}.")
