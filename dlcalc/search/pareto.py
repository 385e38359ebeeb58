"""Plans that no other plan beats in both step time and memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import Array


def front(step_time_s: Array, memory_bytes: Array) -> NDArray[np.int64]:
    """Positions of the plans that are faster than every plan using no more memory; of equals the first."""
    order = np.lexsort((np.arange(len(step_time_s)), step_time_s, memory_bytes))
    steps = step_time_s[order]
    fastest_so_far = np.minimum.accumulate(np.concatenate([[np.inf], steps[:-1]]))
    return np.sort(order[steps < fastest_so_far])


class ParetoFilter:
    """The front of everything seen so far, so that each block yields only plans that can still be on it."""

    def __init__(self) -> None:
        self.step_time_s = np.empty(0)
        self.memory_bytes = np.empty(0)

    def candidates(self, step_time_s: Array, memory_bytes: Array) -> NDArray[np.int64]:
        """Positions of a block's plans on the front of the block and of everything before it."""
        if len(self.step_time_s):
            slot = np.searchsorted(self.memory_bytes, memory_bytes, side="right")
            bound = np.concatenate([[np.inf], self.step_time_s])[slot]  # fastest with no more memory
            open_ = np.flatnonzero(step_time_s < bound)
        else:
            open_ = np.arange(len(step_time_s))
        new = open_[front(step_time_s[open_], memory_bytes[open_])]
        steps = np.concatenate([self.step_time_s, step_time_s[new]])
        memories = np.concatenate([self.memory_bytes, memory_bytes[new]])
        kept = front(steps, memories)
        order = np.argsort(memories[kept])
        self.step_time_s, self.memory_bytes = steps[kept][order], memories[kept][order]
        return np.asarray(new)
