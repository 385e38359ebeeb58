"""What of a layer is computed again in the backward pass instead of kept: the modes, and those made of several.

Tables elsewhere say what a simple mode keeps or runs again, a column each; combined modes follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

SIMPLE_MODES = ("none", "selective", "full", "norm_act", "mla_up_proj", "op_sac")
"""selective: the attention core; full: all but the layer's input; norm_act: outputs of norms and activation functions;
mla_up_proj: heads made from latents; op_sac: all but the attention core and every other matmul (torchtitan)."""
NONE, SELECTIVE, FULL, NORM_ACT, MLA_UP_PROJ, OP_SAC = range(len(SIMPLE_MODES))

PARTS: Mapping[str, tuple[int, ...]] = {
    "selective+norm_act": (SELECTIVE, NORM_ACT),
    "selective+mla_up_proj": (SELECTIVE, MLA_UP_PROJ),
    "norm_act+mla_up_proj": (NORM_ACT, MLA_UP_PROJ),
    "selective+norm_act+mla_up_proj": (SELECTIVE, NORM_ACT, MLA_UP_PROJ),
}
"""Modes that recompute what several simple ones do."""
RECOMPUTE_MODES = (*SIMPLE_MODES, *PARTS)
"""In the order of their codes."""


def parts_of(mode: str) -> tuple[str, ...]:
    """The simple modes that a mode is made of."""
    return tuple(SIMPLE_MODES[part] for part in PARTS.get(mode, (RECOMPUTE_MODES.index(mode),)))


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
