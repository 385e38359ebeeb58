"""The factors of the terms of a ratio multiply to it, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.calculators.ratios import term_factor

seconds = st.lists(st.floats(0.0, 1e3), min_size=5, max_size=5)


def factors(slow, fast):
    slow, fast = np.array(slow), np.array(fast)
    return term_factor(slow_term_s=slow, fast_term_s=fast, slow_s=slow.sum(), fast_s=fast.sum())


@given(slow=seconds, fast=seconds)
def test_they_multiply_to_the_ratio(slow, fast):
    """Terms may be zero in one of the totals, or in both."""
    slow, fast = [1.0, *slow], [1.0, *fast]
    assert np.prod(factors(slow, fast)) == pytest.approx(sum(slow) / sum(fast), rel=1e-9)


@given(slow=seconds, fast=seconds)
def test_a_term_that_is_longer_in_the_slow_total_counts_for_it(slow, fast):
    found = factors([1.0, *slow], [1.0, *fast])
    for value, a, b in zip(found, [1.0, *slow], [1.0, *fast], strict=True):
        assert (value - 1) * (a - b) >= 0


@given(terms=seconds, k=st.floats(0.1, 10.0))
def test_where_all_terms_shrink_alike_each_has_its_share(terms, k):
    """Shares of the ratio, on a logarithmic scale, are then the terms' shares of the total."""
    terms = np.array([1.0, *terms])
    assert factors(terms * k, terms) == pytest.approx(k ** (terms / terms.sum()), rel=1e-6)


def test_equal_totals_are_the_limit_of_nearly_equal_ones():
    same = factors([3.0, 1.0], [2.0, 2.0])
    near = factors([3.0 + 1e-7, 1.0], [2.0, 2.0])
    assert np.prod(same) == pytest.approx(1.0, rel=1e-12)
    assert same == pytest.approx(near, rel=1e-6)
    assert same == pytest.approx(np.exp([0.25, -0.25]))
