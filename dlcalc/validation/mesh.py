"""The parallel degrees of a measured run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dlcalc.errors import DlcalcError
from dlcalc.validation.rows import MeasuredRun

MOST_STAGES = 1024
MOST_CHUNKS = 4096


@dataclass(frozen=True)
class Mesh:
    """The parallel degrees of a row."""

    tp: int
    cp: int
    pp: int
    dp: int
    vpp: int
    ep: int
    etp: int


def mesh_of(run: MeasuredRun, remarks: list[str]) -> Mesh:
    """The degrees that a row gives, 1 where it gives none; dp follows from the devices."""
    devices = run.whole("gpus")
    tp, cp, pp = (run.whole(key, 1) for key in ("tp", "cp", "pp"))
    if devices % (tp * cp * pp):
        raise DlcalcError(f"tp x cp x pp = {tp * cp * pp} does not divide {devices} devices")
    dp = devices // (tp * cp * pp)
    stated = run.whole("dp", dp)
    if stated != dp:
        remarks.append("dp does not agree with gpus and the other degrees; it follows from them")
    vpp = run.whole("vpp", _chunks_of_schedule(run)) if pp > 1 else 1
    if pp > MOST_STAGES or pp * vpp > MOST_CHUNKS:
        raise DlcalcError(
            f"pp = {pp} and vpp = {vpp}: no pipeline has more than {MOST_STAGES} stages and {MOST_CHUNKS} chunks"
        )
    return Mesh(tp=tp, cp=cp, pp=pp, dp=dp, vpp=vpp, ep=run.whole("ep", 1), etp=run.whole("etp", 0, least=0))


def _chunks_of_schedule(run: MeasuredRun) -> int:
    """Chunks per stage of a schedule that needs several and does not say how many."""
    return 2 if re.search(r"interleaved|zb_?-?v", run.extras.get("schedule", "").lower()) else 1
