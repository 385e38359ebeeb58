"""How much a placement may still be worked on: counted work, so that the same input gives the same output.

Work is said in seconds of a slow core: constants are about one and a half times what was measured on two busy cores of
a server, so that there the counted limit is reached before the clock's. The clock ends a search only where a machine is
slower than that; then, and only then, a faster machine may find another answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

STEPS_PER_S = 6e8
"""Elementary steps of a knapsack."""


@dataclass
class Budget:
    """What is left of a time limit."""

    limit_s: float
    spent_s: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def spend(self, seconds: float) -> None:
        self.spent_s += seconds

    @property
    def left_s(self) -> float:
        """The lesser of counted and clocked time that is left."""
        return max(0.0, min(self.limit_s - self.spent_s, self.clock_left_s))

    @property
    def clock_left_s(self) -> float:
        return max(0.0, self.limit_s - (time.monotonic() - self.began_s))

    @property
    def is_spent(self) -> bool:
        return self.left_s <= 0.0
