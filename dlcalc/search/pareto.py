"""Plans that no other plan beats in both step time and memory."""

from __future__ import annotations

import numpy as np

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.plans import Array, Index


def front(step_time_s: Array, memory_bytes: Array) -> Index:
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

    def unbeaten(self, step_time_s: Array, memory_bytes: Array) -> Mask:
        """Where no plan seen so far is better in one and no worse in the other; equals are unbeaten."""
        slot = np.searchsorted(self.memory_bytes, memory_bytes, side="right")
        fastest = np.concatenate([[np.inf], self.step_time_s])[slot]  # with no more memory
        its_memory = np.concatenate([[np.inf], self.memory_bytes])[slot]
        return np.asarray((step_time_s < fastest) | ((step_time_s == fastest) & (memory_bytes == its_memory)))

    def candidates(self, step_time_s: Array, memory_bytes: Array) -> Index:
        """Positions of a block's plans on the front of the block and of everything before it, equals among them."""
        open_ = np.flatnonzero(self.unbeaten(step_time_s, memory_bytes))
        steps = np.concatenate([self.step_time_s, step_time_s[open_]])
        memories = np.concatenate([self.memory_bytes, memory_bytes[open_]])
        kept = front(steps, memories)
        order = np.argsort(memories[kept])
        self.step_time_s, self.memory_bytes = steps[kept][order], memories[kept][order]
        return open_[self.unbeaten(step_time_s[open_], memory_bytes[open_])]
