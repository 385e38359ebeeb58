"""What a search has found so far: counts, the best plans, and those near them.

Ties go to the smaller plan index, so that findings can be joined in any order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import Array, Index

SortKey = Literal["step_time", "memory"]
N_MISSES = 5
NEAR_BEST = 1.02
NEAR_MOST = 1000
"""Of the plans within 2 % of the fastest so many are kept by name; how many there are is counted all the same."""


@dataclass(frozen=True)
class Leaders:
    """Some plans with what they were ranked by, best first."""

    index: Index
    step_time_s: Array
    memory_bytes: Array

    @classmethod
    def none(cls) -> Leaders:
        empty = np.empty(0)
        return cls(np.empty(0, np.int64), empty, empty)

    def join(self, other: Leaders) -> Leaders:
        return Leaders(
            np.concatenate([self.index, other.index]),
            np.concatenate([self.step_time_s, other.step_time_s]),
            np.concatenate([self.memory_bytes, other.memory_bytes]),
        )

    def take(self, where: Index | NDArray[np.bool_]) -> Leaders:
        return Leaders(self.index[where], self.step_time_s[where], self.memory_bytes[where])

    def best(self, count: int, key: SortKey) -> Leaders:
        first, second = (
            (self.step_time_s, self.memory_bytes) if key == "step_time" else (self.memory_bytes, self.step_time_s)
        )
        return self.take(
            np.lexsort((self.index, second, first))[:count]
            if key == "memory"
            else np.lexsort((self.index, first))[:count]
        )


@dataclass
class Found:
    """What is known of a scenario after some of its blocks."""

    n_plans: int = 0
    n_fit: int = 0
    n_estimated: int = 0
    """Plans whose time and memory were worked out. The others are refused by a constraint or by memory, and were only
    counted, or cannot be among those that are kept."""
    n_refused: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    leaders: Leaders = field(default_factory=Leaders.none)
    near: Leaders = field(default_factory=Leaders.none)
    """Plans within 2 % of the fastest so far, the ``NEAR_MOST`` fastest of them."""
    near_beyond_s: float = np.inf
    """From this step time on, ``near`` may lack some that are within 2 %: there was no room for them."""
    n_near_counted: int | None = None
    """How many are within 2 %, where ``near`` lacks some and they were counted."""
    misses: Leaders = field(default_factory=Leaders.none)
    """Plans that only memory refuses, those closest to fitting first."""

    def bound(self, keep: int, key: SortKey) -> float:
        """What a further plan must not exceed to be among the ``keep`` best."""
        if len(self.leaders.index) < keep:
            return np.inf
        return float((self.leaders.step_time_s if key == "step_time" else self.leaders.memory_bytes).max())

    @property
    def fastest(self) -> float:
        return float(self.near.step_time_s.min()) if len(self.near.index) else np.inf

    @property
    def n_near(self) -> int:
        """Plans within 2 % of the fastest."""
        return len(self.near.index) if self.n_near_counted is None else self.n_near_counted

    @property
    def lacks_near(self) -> bool:
        """Whether more plans may be within 2 % than ``near`` has room for, and nobody has counted them."""
        return self.near_beyond_s < np.inf and self.n_near_counted is None

    def keep_near(self, others: Leaders, fastest: float = np.inf, beyond_s: float = np.inf) -> None:
        """Join ``others``, complete below ``beyond_s``: what is within 2 % of the fastest here or elsewhere is kept."""
        near = within(self.near.join(others), fastest)
        beyond_s = min(self.near_beyond_s, beyond_s)
        if len(near.index) >= NEAR_MOST:
            near = near.take(np.arange(NEAR_MOST))
            beyond_s = min(beyond_s, float(near.step_time_s[-1]))
        self.near = near
        limit_s = NEAR_BEST * min(fastest, self.fastest)
        self.near_beyond_s = np.inf if limit_s < beyond_s else beyond_s  # what is lacked is no longer near

    def add(self, other: Found, *, keep: int, key: SortKey) -> None:
        """Join the findings of other blocks; the order in which blocks arrive does not matter."""
        self.n_plans += other.n_plans
        self.n_fit += other.n_fit
        self.n_estimated += other.n_estimated
        self.n_refused += other.n_refused
        self.refused.update(other.refused)
        self.leaders = self.leaders.join(other.leaders).best(keep, key)
        self.keep_near(other.near, beyond_s=other.near_beyond_s)
        self.misses = self.misses.join(other.misses).best(N_MISSES, "memory")


def within(leaders: Leaders, fastest: float = np.inf) -> Leaders:
    """The plans within 2 % of the fastest among ``leaders`` and elsewhere, fastest first."""
    if not len(leaders.index):
        return leaders
    close = leaders.take(leaders.step_time_s <= NEAR_BEST * min(fastest, leaders.step_time_s.min()))
    return close.best(len(close.index), "step_time")
