"""How much of a ratio of two totals each of their terms makes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numeric = float | NDArray[np.float64]


def term_factor(*, slow_term_s: Numeric, fast_term_s: Numeric, slow_s: Numeric, fast_s: Numeric) -> Numeric:
    """The factor that a term has in ``slow_s / fast_s``: over all terms, the factors multiply to that ratio exactly.

    ``(slow / fast) ** ((slow_term - fast_term) / (slow - fast))``: a term has the share of the ratio, on a logarithmic
    scale, that it has of the seconds between the totals. Below 1 where the term is the longer one in the fast total.

    Between equal totals the exponent is taken to its limit, ``(slow_term - fast_term) / total``.

    Source: [ang2005] the multiplicative LMDI-I decomposition, of a sum of terms; [derived] its weights
    ``L(slow_term, fast_term) / L(slow, fast)``, with L the logarithmic mean, cancel against the terms' own logarithms.
    """
    slow_term, fast_term, slow, fast = np.broadcast_arrays(slow_term_s, fast_term_s, slow_s, fast_s)
    ratio = np.log(slow / fast)
    between = slow - fast
    alike = np.abs(between) <= 1e-12 * np.abs(slow)
    mean = np.where(alike, slow, between / np.where(alike, 1.0, ratio))
    return np.asarray(np.exp((slow_term - fast_term) / mean))
