"""Constraints that users write, such as ``tp <= node`` or ``pp * vpp <= 16``: parsed, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcalc.errors import suggestion

WORDS = ("schedule", "recompute", "split", "cp_exchange")
"""Knobs that constraints cannot compare."""
ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
COMPARISON: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def holds(text: str, names: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Where the comparison ``text`` is true, for arrays (or words' codes) under ``names``.

    Raises ValueError with what is wrong in the text.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read constraint {text!r}: {error.msg}; write something like 'tp <= node'") from error
    return np.asarray(_truth(tree, names, text))


def number(text: str, names: Mapping[str, Any]) -> Any:  # noqa: ANN401 arrays or scalars
    """The value of the expression ``text``; ValueError with what is wrong in it."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read {text!r}: {error.msg}; write something like '1.5 + 0.01 * hbm_gib'") from error
    try:
        return _value(tree, names, text)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("constraint ")) from error


def _truth(node: ast.expr, names: Mapping[str, Any], text: str) -> Any:  # noqa: ANN401 arrays or scalars
    if isinstance(node, ast.BoolOp):
        parts = [_truth(value, names, text) for value in node.values]
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        result = parts[0]
        for part in parts[1:]:
            result = combine(result, part)
        return result
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return np.logical_not(_truth(node.operand, names, text))
    if isinstance(node, ast.Compare):
        result = True
        left = node.left
        for compare, right in zip(node.ops, node.comparators, strict=True):
            result = np.logical_and(result, _compared(compare, left, right, names, text))
            left = right
        return result
    raise ValueError(f"constraint {text!r} is not a comparison; write something like 'tp <= node'")


def _compared(compare: ast.cmpop, left: ast.expr, right: ast.expr, names: Mapping[str, Any], text: str) -> Any:  # noqa: ANN401
    if isinstance(compare, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple):
        value = _value(left, names, text)
        found = np.isin(value, [_value(item, names, text) for item in right.elts])
        return found if isinstance(compare, ast.In) else ~found
    if type(compare) not in COMPARISON:
        raise ValueError(f"constraint {text!r} uses a comparison that is not one of < <= > >= == != in")
    return COMPARISON[type(compare)](_value(left, names, text), _value(right, names, text))


def _value(node: ast.expr, names: Mapping[str, Any], text: str) -> Any:  # noqa: ANN401
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        if node.id in WORDS:
            raise ValueError(
                f"constraint {text!r} names {node.id!r}, whose values are words; choose them under space: {node.id}"
            )
        if node.id not in names:
            raise ValueError(f"constraint {text!r} names {node.id!r}; {suggestion(node.id, names)}")
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, names, text)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return ARITHMETIC[type(node.op)](_value(node.left, names, text), _value(node.right, names, text))
    raise ValueError(f"constraint {text!r} may hold numbers, knobs and + - * / // % only")
