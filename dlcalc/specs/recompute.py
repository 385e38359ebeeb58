"""What of a layer is computed again in the backward pass instead of kept: the modes, and those made of several.

Tables elsewhere say what a simple mode keeps or runs again, a column each; combined modes follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

SIMPLE_MODES = ("none", "selective", "full", "norm_act", "mla_up_proj", "op_sac", "mlp", "moe")
"""selective: the attention core; full: all but the layer's input; norm_act: outputs of norms and activation functions;
mla_up_proj: heads made from latents; op_sac: all but the attention core and every other matmul (torchtitan); mlp and
moe: all of a dense MLP, all of a mixture of experts, its exchanges included."""
NONE, SELECTIVE, FULL, NORM_ACT, MLA_UP_PROJ, OP_SAC, MLP, MOE = range(len(SIMPLE_MODES))
COMBINED = (NORM_ACT, MLA_UP_PROJ, SELECTIVE, MLP, MOE)
"""Simple modes that go with one another, the one that computes least again first."""
JOIN = "+"

PARTS: Mapping[str, tuple[int, ...]] = {
    JOIN.join(SIMPLE_MODES[part] for part in sorted(parts)): parts
    for n_parts in range(2, len(COMBINED) + 1)
    for parts in combinations(COMBINED, n_parts)
}
"""Modes that recompute what several simple ones do."""
RECOMPUTE_MODES = (*SIMPLE_MODES, *PARTS)
"""In the order of their codes."""


def parts_of(mode: str) -> tuple[str, ...]:
    """The simple modes that a mode is made of."""
    return tuple(SIMPLE_MODES[part] for part in sorted(PARTS.get(mode, (RECOMPUTE_MODES.index(mode),))))


def combined(parts: Sequence[str]) -> str | None:
    """The mode made of these simple ones, whatever their order; None where there is none."""
    asked = set(parts)
    return next((mode for mode in RECOMPUTE_MODES if set(parts_of(mode)) == asked), None)


def for_every_mode(simple: Sequence[float], together: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
    """A table's row for every mode, of its row for the simple ones; ``together`` joins those of a combined mode."""
    return (*simple, *(together([simple[part] for part in parts]) for parts in PARTS.values()))


def codes_with(part: int) -> tuple[int, ...]:
    """Codes of the modes that recompute what the simple mode ``part`` does, by itself or among others."""
    return (part, *(len(SIMPLE_MODES) + at for at, parts in enumerate(PARTS.values()) if part in parts))


def from_least_to_most() -> tuple[str, ...]:
    """All modes by how much they compute again, as far as that has an order: the largest part first."""
    weight = {SIMPLE_MODES[part]: 2**place for place, part in enumerate(COMBINED)}
    most = 2 ** len(COMBINED)
    weight |= {"none": 0, "op_sac": most, "full": most + 1}
    return tuple(sorted(RECOMPUTE_MODES, key=lambda mode: sum(weight[part] for part in parts_of(mode))))
