"""Constraints that users write."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.search.constraints import holds

NAMES = {"tp": np.array([1.0, 2, 4, 8, 16]), "pp": np.array([[1.0], [4]]), "node": 8.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tp <= node", [True, True, True, True, False]),
        ("1 < tp < 16", [False, True, True, True, False]),
        ("tp in [2, 16]", [False, True, False, False, True]),
        ("tp not in (2, 16)", [True, False, True, True, False]),
        ("tp % 4 == 0 or tp == 1", [True, False, True, True, True]),
        ("not tp == 8", [True, True, True, False, True]),
        ("tp * 2 // 3 >= 1 and -tp != -4", [False, True, False, True, True]),
    ],
)
def test_a_comparison_is_evaluated_on_arrays(text, expected):
    np.testing.assert_array_equal(holds(text, NAMES), expected)


def test_arrays_of_different_axes_broadcast():
    assert holds("tp * pp <= 16", NAMES).shape == (2, 5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tpp <= 8", "did you mean tp"),
        ("tp <=", "cannot read constraint"),
        ("tp", "is not a comparison"),
        ("tp <= 'a'", "numbers, knobs"),
        ("__import__('os').system('true') == 0", "numbers, knobs"),
        ("tp ** 99 < 3", "numbers, knobs"),
        ("tp is 3", "a comparison that is not one of"),
    ],
)
def test_what_is_not_a_comparison_is_refused_by_what_is_wrong(text, problem):
    with pytest.raises(ValueError, match=problem.replace("(", r"\(")):
        holds(text, NAMES)
