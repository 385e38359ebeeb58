"""A pipeline step, operation by operation: what each stage does when.

Every device runs its operations in the order its schedule issues them, each as soon as its inputs have arrived. Orders
are those of Megatron Core (1f1b, interleaved), of torch.distributed.pipelining (gpipe, zb-h1, zb-v) and of DualPipe's
eight steps. The estimate does not need any of this: it uses the closed forms of ``calculators.schedule``, which say how
far they may be from such a replay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal, NamedTuple

import numpy as np

from dlcalc.calculators.schedule import DUALPIPE, GPIPE, INTERLEAVED, ONE_F_ONE_B, ZB_H1, ZB_V
from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.every_stage import Chunks, ChunkTimes, chunk_times, chunks_of
from dlcalc.costmodel.layer_comm import stage_send_s
from dlcalc.costmodel.plans import Plans

Kind = Literal["forward", "backward", "input gradient", "weight gradient", "send"]


class Op(NamedTuple):
    """One pass of one micro-batch through one chunk. ``way`` 1: against the current, dualpipe's second direction."""

    kind: Kind
    chunk: int
    micro_batch: int
    way: int = 0


Turn = tuple[Op, ...]
"""Operations that run as one: a single one, or dualpipe's forward and backward pass together."""


@dataclass(frozen=True)
class Event:
    """Something a device did."""

    device: int
    op: Op
    start_s: float
    end_s: float
    is_blocking: bool = True
    """False: a send beside the computation."""


@dataclass(frozen=True)
class Timeline:
    """All events of one step's pipeline, from the first forward to the last backward pass."""

    n_devices: int
    events: tuple[Event, ...]

    @property
    def end_s(self) -> float:
        return max((event.end_s for event in self.events), default=0.0)


class CannotRunError(Exception):
    """The order of operations cannot be carried out: the plan is refused for a reason."""


def n_operations(found: Estimate) -> int:
    """Passes of a step: what a replay's size grows with."""
    plan = found.plans
    return int(4 * micro_batches_of(found) * plan.pp * plan.vpp)


def micro_batches_of(found: Estimate) -> int:
    """Micro-batches of one step and replica; a fraction is rounded up."""
    return int(np.ceil(found.machine.recipe.global_batch / (found.plans.dp * found.plans.micro_batch)))


def pipeline_timeline(found: Estimate, custom_split: tuple[int, ...] | None = None) -> Timeline:
    """Replay the pipeline of a point with the estimate's own stage times."""
    plan = found.plans
    chunks = chunks_of(found.model, plan, custom_split, found.machine.recipe.stage_recompute)
    send_s = float(stage_send_s(found.model, plan, found.links, found.machine))
    sends_beside = bool(plan.vpp > 1) and found.machine.recipe.framework.overlaps_stage_sends
    orders = orders_of(plan, micro_batches_of(found))
    return replay(orders, chunks, chunk_times(found, chunks), send_s=send_s, sends_block=not sends_beside)


# ---- the replay ---------------------------------------------------------------------------------------------------


def replay(
    orders: Sequence[Sequence[Turn]], chunks: Chunks, times: ChunkTimes, *, send_s: float, sends_block: bool
) -> Timeline:
    """Every device carries out its order, each turn as soon as the device is free and the inputs are there."""
    seconds = _durations(times)
    last_chunk = len(times.forward_s) - 1
    place = _Places(chunks)
    done: dict[Op, float] = {}
    arrived: dict[tuple[Op, int], float] = {}
    free = [0.0] * len(orders)
    position = [0] * len(orders)
    events: list[Event] = []
    waiting = deque(range(len(orders)))
    idle = 0
    while waiting:
        device = waiting.popleft()
        moved = False
        while position[device] < len(orders[device]):
            turn = orders[device][position[device]]
            ready = _ready_s(turn, device, done, arrived, last_chunk, place)
            if ready is None:
                break
            start = max(ready, free[device])
            for op in turn:
                end = start + seconds(op)
                events.append(Event(device, op, start, end))
                start = end
            for op in turn:
                done[_result_of(op)] = start
                target = place.next_device(op, device, last_chunk)
                if target is None or send_s <= 0:
                    continue
                send = Event(device, Op("send", op.chunk, op.micro_batch, op.way), start, start + send_s, sends_block)
                events.append(send)
                arrived[_result_of(op), target] = send.end_s
                start = send.end_s if sends_block else start
            free[device] = start
            position[device] += 1
            moved = True
        idle = 0 if moved else idle + 1
        if position[device] < len(orders[device]):
            waiting.append(device)
        if idle > len(waiting) > 0:
            raise CannotRunError("the operations of the schedule wait for one another")
    return Timeline(len(orders), tuple(events))


def _durations(times: ChunkTimes) -> Callable[[Op], float]:
    """Seconds of an operation."""
    table: dict[Kind, list[float]] = {
        "forward": times.forward_s.tolist(),
        "backward": times.backward_s.tolist(),
        "input gradient": (times.backward_s - times.weight_grad_s).tolist(),
        "weight gradient": times.weight_grad_s.tolist(),
    }
    return lambda op: table[op.kind][op.chunk]


def _result_of(op: Op) -> Op:
    """What others wait for: a whole backward pass and its first half give the same gradient."""
    return op._replace(kind="backward") if op.kind == "input gradient" else op


class _Places:
    """Which device works on a chunk, for micro-batches of either direction."""

    def __init__(self, chunks: Chunks) -> None:
        devices = [np.flatnonzero(column).tolist() for column in chunks.on_device.T]
        n_chunks = len(devices)
        self._device: list[list[int]] = [[found[0] for found in devices]]
        if any(len(found) > 1 for found in devices):  # one chunk a device, on both sides of the middle
            self._device = [list(range(n_chunks)), list(reversed(range(n_chunks)))]

    def device_of(self, chunk: int, way: int) -> int:
        return self._device[way][chunk]

    def next_device(self, op: Op, device: int, last_chunk: int) -> int | None:
        """Where the result of ``op`` is sent; None if it stays, or is nobody's input."""
        step = {"forward": 1, "backward": -1, "input gradient": -1}.get(op.kind, 0)
        target = op.chunk + step
        if not step or not 0 <= target <= last_chunk:
            return None
        found = self.device_of(target, op.way)
        return None if found == device else found


def _ready_s(
    turn: Turn,
    device: int,
    done: dict[Op, float],
    arrived: dict[tuple[Op, int], float],
    last_chunk: int,
    place: _Places,
) -> float | None:
    """When every input of ``turn`` is on ``device``; None: not yet known."""
    latest = 0.0
    for op in turn:
        for need in _inputs(op, last_chunk):
            if need not in done:
                return None
            latest = max(latest, arrived.get((need, device), done[need]))
    return latest


def _inputs(op: Op, last_chunk: int) -> Iterator[Op]:
    match op.kind:
        case "forward" if op.chunk > 0:
            yield op._replace(chunk=op.chunk - 1)
        case "backward" | "input gradient":
            yield op._replace(kind="forward")
            if op.chunk < last_chunk:
                yield op._replace(kind="backward", chunk=op.chunk + 1)
        case "weight gradient":
            yield op._replace(kind="backward")
        case _:
            pass


# ---- who runs what in which order ---------------------------------------------------------------------------------


def orders_of(plan: Plans, n_micro_batches: int) -> list[list[Turn]]:
    """The operations of every device, in the order its schedule issues them."""
    pp, vpp, schedule, m = int(plan.pp), int(plan.vpp), int(plan.schedule), n_micro_batches
    match schedule:
        case s if s == ONE_F_ONE_B or (s == INTERLEAVED and vpp == 1):
            return [_singles(_one_f_one_b(device, pp, m)) for device in range(pp)]
        case s if s == INTERLEAVED and m % pp == 0:
            return [_singles(_interleaved(device, pp, vpp, m)) for device in range(pp)]
        case s if s == GPIPE and vpp == 1:
            return [[(Op(kind, device, k),) for kind in _BOTH for k in range(m)] for device in range(pp)]
        case s if s == ZB_H1 and vpp == 1:
            return [_singles(_zb_h1(device, pp, m)) for device in range(pp)]
        case s if s == ZB_V and vpp == 2:
            return [_singles(_zb_v(device, pp, m)) for device in range(pp)]
        case s if s == DUALPIPE and pp % 2 == 0 and m % 2 == 0 and m >= 2 * pp and vpp == 1:
            return [_dualpipe(device, pp, m) for device in range(pp)]
        case _:
            raise CannotRunError("the schedule cannot run with these degrees and micro-batches")


_BOTH: tuple[Kind, Kind] = ("forward", "backward")


def _singles(order: Sequence[Op]) -> list[Turn]:
    return [(op,) for op in order]


def _alternating(forward: list[Op], backward: list[Op], warm_up: int) -> list[Op]:
    """``warm_up`` forward passes, then one of each in turn, then what is left of the backward passes."""
    warm_up = min(warm_up, len(forward))
    rest = chain.from_iterable(zip_longest(forward[warm_up:], backward))
    return [*forward[:warm_up], *(op for op in rest if op is not None)]


def _one_f_one_b(device: int, pp: int, m: int) -> list[Op]:
    return _alternating(
        [Op("forward", device, k) for k in range(m)], [Op("backward", device, k) for k in range(m)], pp - device - 1
    )


def _interleaved(device: int, pp: int, vpp: int, m: int) -> list[Op]:
    """Groups of pp micro-batches go through a device's chunks one after the other."""
    groups = [range(start, start + pp) for start in range(0, m, pp)]
    forward = [Op("forward", chunk * pp + device, k) for group in groups for chunk in range(vpp) for k in group]
    backward = [
        Op("backward", chunk * pp + device, k) for group in groups for chunk in reversed(range(vpp)) for k in group
    ]
    return _alternating(forward, backward, 2 * (pp - device - 1) + (vpp - 1) * pp)


def _zb_h1(device: int, pp: int, m: int) -> list[Op]:
    """1f1b whose weight gradients come ``device`` backward passes later than they could."""
    order: list[Op] = []
    for op in _one_f_one_b(device, pp, m):
        if op.kind == "forward":
            order.append(op)
            continue
        order.append(op._replace(kind="input gradient"))
        if op.micro_batch >= device:
            order.append(Op("weight gradient", device, op.micro_batch - device))
    return order + [Op("weight gradient", device, k) for k in range(max(m - device, 0), m)]


def _zb_v(device: int, pp: int, m: int) -> list[Op]:
    """Two chunks a device, down and up a V; written for 2 pp - 1 micro-batches, a short step skips the last."""
    total = max(2 * pp - 1, m)
    chunks = (device, 2 * pp - 1 - device)
    numbers = {(kind, side): iter(range(total)) for kind in ("F", "I", "W") for side in (0, 1)}
    left = dict.fromkeys(numbers, total)
    kinds: dict[str, Kind] = {"F": "forward", "I": "input gradient", "W": "weight gradient"}
    order: list[Op] = []

    def run(script: str, times: int = 1) -> None:
        for word in script.split() * times:
            key = (word[0], int(word[1]))
            if left[key]:
                left[key] -= 1
                order.append(Op(kinds[word[0]], chunks[key[1]], next(numbers[key])))

    run("F0", 2 * (pp - device) - 1)
    run("F1 F0", device)
    run("F1 I1 W1", pp - device)
    while left["F", 1]:
        run("F0 I0 W0 F1 I1 W1")
    run("I0 I1", device)
    run("I0 W0", pp - device)
    run("W1", left["W", 1])
    run("W0", left["W", 0])
    return [op for op in order if op.micro_batch < m]


def _dualpipe(device: int, pp: int, m: int) -> list[Turn]:
    """Half of the micro-batches enter at either end. Side 0 enters at the nearer end; joined words run as one."""
    near = min(device, pp - 1 - device)
    inner = pp // 2 - near - 1
    order: list[Turn] = []
    passed = {(kind, side): 0 for kind in "FB" for side in (0, 1)}
    postponed: deque[Op] = deque()
    kinds: dict[str, Kind] = {"F": "forward", "B": "backward", "I": "input gradient"}

    def take(word: str) -> Op:
        side = int(word[1])
        way = side ^ (device >= pp // 2)
        key = ("F" if word[0] == "F" else "B", side)
        passed[key] += 1
        return Op(kinds[word[0]], pp - 1 - device if way else device, passed[key] - 1, way)

    def run(script: str, times: int = 1) -> None:
        for word in script.split() * times:
            if word == "W":
                order.append((postponed.popleft(),))
                continue
            turn = tuple(take(part) for part in word.split("&"))
            order.append(turn)
            postponed.extend(op._replace(kind="weight gradient") for op in turn if op.kind == "input gradient")

    run("F0", 2 * inner)
    run("F0 F1", near + 1)
    run("I1 W F1", inner)
    run("F0&B1 F1&B0" if inner else "F0 B1 F1&B0")
    run("F0&B1 F1&B0", m // 2 - pp + near)
    run("B1 F1&B0", inner)
    whole = (near + 1) // 2
    run("B1 B0", whole)
    if near % 2:
        run("I1 I0", whole)
    else:
        run("B1 I0")
        run("I1 I0", near - whole)
    run("W I0", inner)
    run("W", near + 1)
    return order
