"""How a row says which layers sit on which stage of its pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from dlcalc.errors import DlcalcError
from dlcalc.validation.spelling import switch

LONGEST_LAYOUT = 100_000
"""Parts of a layout written out; more is a typing error."""


def layers_per_chunk(extras: Mapping[str, str], *, n_layers: int, pp: int, vpp: int) -> tuple[int, ...] | None:
    """Layers of each of the pp x vpp chunks in order, where the row gives them; None where it does not.

    ``layers_per_stage`` may list stages of several chunks, over which its layers are spread evenly. An embedding or a
    loss that alone counts as a layer takes one from the first or the last chunk; for both the cost model has a split
    of its own.
    """
    if pp == 1:
        return None
    if stages := _counts(extras.get("layers_per_stage", "")):
        return _per_chunk(stages, pp=pp, vpp=vpp) if len(stages) == pp else stages
    if layout := extras.get("pp_layout", ""):
        return layout_layers(layout)
    embedding, loss = (bool(switch(extras.get(key, ""))) for key in ("emb_in_pp_split", "loss_in_pp_split"))
    n_chunks = pp * vpp
    if embedding == loss or (n_layers + 1) % n_chunks:
        return None
    share = [(n_layers + 1) // n_chunks] * n_chunks
    share[0 if embedding else -1] -= 1
    return tuple(share)


def layout_layers(layout: str) -> tuple[int, ...]:
    """Layers per chunk of ``Et*3|(tt|)*2m|L``, or of the same as JSON lists of names."""
    if layout.lstrip().startswith("["):
        try:
            chunks = json.loads(layout)
        except (ValueError, RecursionError) as error:
            raise DlcalcError(f"pp_layout cannot be read: {error}") from error
        if not all(isinstance(chunk, list) for chunk in chunks):
            raise DlcalcError("pp_layout cannot be read: a list of lists of names is expected")
        return tuple(sum(part == "decoder" for part in chunk) for chunk in chunks)
    return tuple(chunk.count("t") for chunk in expand_layout(layout).split("|"))


def expand_layout(layout: str) -> str:
    """A layout with its repetitions written out: ``Et*3|(tt|)*2m|L`` is ``Ettt|tt|tt|m|L``."""
    text = re.sub(r"[\s,]", "", layout)
    while match := re.search(r"\(([^()]*)\)(?:\*(\d{1,5}))?", text):
        text = _written_out(text, match, int(match[2] or 1))
    while match := re.search(r"([A-Za-z])\*(\d{1,5})", text):
        text = _written_out(text, match, int(match[2]))
    return text


def _written_out(text: str, match: re.Match[str], times: int) -> str:
    if len(text) + len(match[1]) * times > LONGEST_LAYOUT:
        raise DlcalcError(f"pp_layout has more than {LONGEST_LAYOUT:,} parts")
    return text[: match.start()] + match[1] * times + text[match.end() :]


def _counts(text: str) -> tuple[int, ...]:
    """The numbers of a list, ``8*3`` being three eights."""
    pairs = re.findall(r"(\d{1,5})(?:\s*[*x]\s*(\d{1,4}))?", text)
    return tuple(int(count) for count, times in pairs for _ in range(int(times or 1)))


def _per_chunk(stages: Sequence[int], *, pp: int, vpp: int) -> tuple[int, ...]:
    """Stage s holds chunks s, s + pp, ...: its layers are spread over them, earlier ones taking what is left over."""
    return tuple(stages[stage] // vpp + (chunk < stages[stage] % vpp) for chunk in range(vpp) for stage in range(pp))
