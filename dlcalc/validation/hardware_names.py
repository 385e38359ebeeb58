"""What people call machines, in our words.

A name is cut into words. Those that say nothing of the device (the vendor's, ``x8``) are left out, the rest must hold
every word of one of our names; the one with most words counts. So what ``nvidia-smi`` prints finds its machine, and
``h100_pcie`` is never an H100 SXM while there is a file of its own. Words that are left over, such as another form
factor or size, make a remark.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from dlcalc.validation.spelling import Taken, plain

NOISE = frozenset(
    {
        *("nvidia", "tesla", "geforce", "amd", "instinct", "intel", "habana", "google", "cloud", "aws", "amazon"),
        *("gpu", "gpus", "device", "devices", "accelerator", "superchip", "oam", "gb", "x"),
        *("hbm", "hbm2", "hbm2e", "hbm3", "hbm3e", "gddr6", "gddr6x", "gddr7"),
    }
)
"""Words that tell no two machines of ours apart."""

FORMS = frozenset({"sxm", "pcie", "nvl"})
"""A form factor that is said outweighs a size that is."""

SIBLINGS = {
    "dgx 2h": ("dgx2", "whose devices draw 350 W, not 450"),
    "dgx2h": ("dgx2", "whose devices draw 350 W, not 450"),
    "h800 pcie": ("h800", "which draws 700 W, not 350, and whose links join all eight"),
    "mi250 128gb": ("mi250", "one die of 64 GB, half a package, is one device"),
    "mi250x 128gb": ("mi250x", "one die of 64 GB, half a package, is one device"),
    "mi300": ("mi300x", ""),
    "v100 pcie": ("v100_32gb", "which draws 300 W, not 250, and has NVLink"),
    "v100s": ("v100_32gb", "whose memory is slower, and which has NVLink"),
}
"""Machines without a file of their own, by their words, the nearest one, and how the two differ."""


def hardware_name(written: str, known: Collection[str]) -> Taken | None:
    """The name in ``known`` that ``written`` most likely means; None if it is like none of them."""
    by_plain = {plain(name): name for name in known}
    asked = plain(written)
    if asked in by_plain:
        return Taken(by_plain[asked])
    words = _words(asked)
    for sibling, (nearest, differs) in SIBLINGS.items():
        if nearest in by_plain and words >= set(sibling.split()):
            because = f" ({differs})" if differs else ""
            return Taken(by_plain[nearest], f"hardware {written} taken as {by_plain[nearest]}{because}")
    names = [(name, ours) for name, ours in _words_of_names(frozenset(by_plain)) if ours <= words]
    if not names:
        return None
    best, ours = max(names, key=lambda one: (len(one[1]), len(one[1] & FORMS), sum(map(len, one[1])), -len(one[0])))
    left = words - ours
    return Taken(by_plain[best], f"hardware {written} taken as {by_plain[best]}" if left else "")


@lru_cache(maxsize=8)
def _words_of_names(names: frozenset[str]) -> tuple[tuple[str, frozenset[str]], ...]:
    found = ((name, _words(name)) for name in sorted(names))
    return tuple((name, words) for name, words in found if words)


def _words(name: str) -> frozenset[str]:
    """The telling words of a plain name: chip, memory, form factor, instance."""
    found: set[str] = set()
    for word in re.sub(r"(?<=_)(\d+)_g(i?b)(?=_|$)", r"\1g\2", name).split("_"):
        match = re.fullmatch(r"(?:\d+x)?(.*?\d+[a-z]?)(sxm|pcie|nvl)\d*", re.sub(r"^\d+x(?=[a-z])", "", word))
        parts = match.groups() if match else (re.sub(r"^\d+x(?=[a-z])", "", word),)
        found.update(_same(part) for part in parts)
    return frozenset(found - NOISE - {""})


def _same(word: str) -> str:
    """One spelling of sizes, form factors and counts; a count is no word."""
    if re.fullmatch(r"\d+g(i?b)?", word):
        return re.sub(r"g.*", "gb", word)
    if re.fullmatch(r"\d*x\d*", word):
        return ""
    return re.sub(r"^(sxm|pcie|nvl)\d?$", r"\1", word)
