"""Closed forms of pipeline schedules against a replay of every operation in the order its trainer issues it.

The orders follow what trainers do: the warm-up, steady and cool-down phases of Megatron Core (1f1b, interleaved), the
schedules of torch.distributed.pipelining (gpipe, zero bubble with one chunk, ZBV) and the eight steps of DualPipe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.calculators.schedule import (
    DUALPIPE,
    GPIPE,
    INTERLEAVED,
    ONE_F_ONE_B,
    SCHEDULES,
    ZB_H1,
    ZB_V,
    bubble_time_s,
    fill_sends_count,
    in_flight_micro_batches_count,
    pipeline_time_s,
    sends_count,
    steady_sends_count,
)

# --- the replay ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """A pass of a micro-batch through a stage: F forward, B backward, I and W its halves for inputs and for weights."""

    kind: str
    stage: int
    micro_batch: int
    way: int = 0
    """1: the micro-batches of dualpipe that travel from the last device to the first."""


Together = tuple[Op, ...]
"""Passes that run as one."""


@dataclass
class Replay:
    """What happened when every device ran its operations in order, each as soon as its inputs were there."""

    end_s: list[float]
    peak_in_flight: list[int]
    done: dict[Op, tuple[float, int]] = field(default_factory=dict)


def replay(
    orders: list[list[Together]], seconds: Callable[[Op], float], *, n_stages: int, send_s: float = 0.0
) -> Replay:
    n = len(orders)
    result = Replay(end_s=[0.0] * n, peak_in_flight=[0] * n)
    position, held = [0] * n, [0] * n
    waiting = sum(map(len, orders))
    while waiting:
        before = waiting
        for device, order in enumerate(orders):
            while position[device] < len(order):
                ready = _ready_s(order[position[device]], device, result, n_stages, send_s)
                if ready is None:
                    break
                passes = order[position[device]]
                end = max(ready, result.end_s[device]) + sum(map(seconds, passes))
                for op in passes:
                    name = Op("B", op.stage, op.micro_batch, op.way) if op.kind == "I" else op
                    result.done[name] = (end, device)
                    held[device] += {"F": 1, "B": -1, "W": -1, "I": 0}[op.kind]
                    result.peak_in_flight[device] = max(result.peak_in_flight[device], held[device])
                result.end_s[device] = end
                position[device] += 1
                waiting -= 1
        assert waiting < before, "deadlock"
    assert held == [0] * n, "every forward pass has had its backward pass"
    return result


def _ready_s(passes: Together, device: int, so_far: Replay, n_stages: int, send_s: float) -> float | None:
    """When all inputs of ``passes`` have reached ``device``; None: not yet known."""
    latest = 0.0
    for op in passes:
        needs = [Op("F", op.stage, op.micro_batch, op.way)] if op.kind != "F" else []
        if op.kind == "F" and op.stage > 0:
            needs = [Op("F", op.stage - 1, op.micro_batch, op.way)]
        if op.kind in "BI" and op.stage < n_stages - 1:
            needs.append(Op("B", op.stage + 1, op.micro_batch, op.way))
        if op.kind == "W":
            needs.append(Op("B", op.stage, op.micro_batch, op.way))
        for need in needs:
            if need not in so_far.done:
                return None
            end, where = so_far.done[need]
            latest = max(latest, end + send_s * (where != device))
    return latest


# --- who runs what in which order ------------------------------------------------------------------------------------


def gpipe_order(pp: int, _vpp: int, m: int) -> list[list[Together]]:
    """All forward passes, then all backward passes."""
    return [[(Op(kind, stage, k),) for kind in "FB" for k in range(m)] for stage in range(pp)]


def one_f_one_b_order(pp: int, _vpp: int, m: int) -> list[list[Together]]:
    """pp - stage - 1 forward passes, then one of each in turn, then the backward passes that are left."""
    return [
        _in_turn([Op("F", stage, k) for k in range(m)], [Op("B", stage, k) for k in range(m)], warm_up=pp - stage - 1)
        for stage in range(pp)
    ]


def interleaved_order(pp: int, vpp: int, m: int) -> list[list[Together]]:
    """Groups of pp micro-batches go through one chunk after the other; the warm-up is longer by vpp - 1 groups."""
    table = [(chunk, group + k) for group in range(0, m, pp) for chunk in range(vpp) for k in range(pp)]
    return [
        _in_turn(
            [Op("F", chunk * pp + device, k) for chunk, k in table],
            [Op("B", (vpp - 1 - chunk) * pp + device, k) for chunk, k in table],
            warm_up=2 * (pp - device - 1) + (vpp - 1) * pp,
        )
        for device in range(pp)
    ]


def _in_turn(forward: list[Op], backward: list[Op], warm_up: int) -> list[Together]:
    warm_up = min(warm_up, len(forward))
    turns = [op for pair in zip(forward[warm_up:], backward, strict=False) for op in pair]
    return [(op,) for op in forward[:warm_up] + turns + backward[len(forward) - warm_up :]]


def zb_h1_order(pp: int, _vpp: int, m: int) -> list[list[Together]]:
    """1f1b, where the weight half of a backward pass comes ``stage`` backward passes later."""
    orders = []
    for stage in range(pp):
        order: list[Op] = []
        weights = iter(range(m))
        for (op,) in one_f_one_b_order(pp, 1, m)[stage]:
            order.append(Op("I", stage, op.micro_batch) if op.kind == "B" else op)
            if op.kind == "B" and op.micro_batch >= stage:
                order.append(Op("W", stage, next(weights)))
        order += [Op("W", stage, k) for k in weights]
        orders.append([(op,) for op in order])
    return orders


def zb_v_order(pp: int, _vpp: int, m: int) -> list[list[Together]]:
    """Two chunks, down and back up; written for 2 pp - 1 micro-batches or more, those not in the step left out."""
    padded = max(2 * pp - 1, m)
    orders = []
    for device in range(pp):
        stages = (device, 2 * pp - 1 - device)
        order: list[Op] = []
        count = {(kind, chunk): 0 for kind in "FIW" for chunk in (0, 1)}

        def run(
            script: str,
            times: int = 1,
            order: list[Op] = order,
            count: dict[tuple[str, int], int] = count,
            stages: tuple[int, int] = stages,
        ) -> None:
            for kind, digit in pairwise(script * times):
                if digit in "01":
                    chunk = int(digit)
                    order.append(Op(kind, stages[chunk], count[kind, chunk]))
                    count[kind, chunk] += 1

        run("F0", 2 * (pp - device) - 1)
        run("F1F0", device)
        run("F1I1W1", pp - device)
        while count["F", 1] < padded:
            run("F0" * (count["F", 0] < padded) + "I0W0F1I1W1")
        run("I0I1", device)
        run("I0W0", pp - device)
        run("W1", padded - count["W", 1])
        run("W0", padded - count["W", 0])
        orders.append([(op,) for op in order if op.micro_batch < m])
    return orders


def dualpipe_order(pp: int, _vpp: int, m: int) -> list[list[Together]]:
    """The eight steps of DualPipe; letters as there, 0 is the nearer end's direction, joined letters run as one."""
    orders = []
    for device in range(pp):
        near = min(device, pp - 1 - device)
        inward = pp // 2 - near - 1
        order: list[Together] = []
        count = {(kind, side): 0 for kind in "FB" for side in (0, 1)}
        pending: deque[Op] = deque()

        def take(letters: str, device: int = device, count: dict[tuple[str, int], int] = count) -> Op:
            kind, side = letters[0], int(letters[1])
            way = side ^ (device >= pp // 2)
            number = count["B" if kind == "I" else kind, side]
            count["B" if kind == "I" else kind, side] += 1
            return Op(kind, pp - 1 - device if way else device, number, way)

        def run(
            script: str,
            times: int = 1,
            order: list[Together] = order,
            pending: deque[Op] = pending,
            take: Callable[[str], Op] = take,
        ) -> None:
            for word in (script + " ").split(" ")[:-1] * times:
                if word == "W":
                    order.append((pending.popleft(),))
                    continue
                passes = tuple(take(letters) for letters in word.split("&"))
                order.append(passes)
                pending.extend(Op("W", op.stage, op.micro_batch, op.way) for op in passes if op.kind == "I")

        run("F0", 2 * inward)
        run("F0 F1", near + 1)
        run("I1 W F1", inward)
        run("F0 B1 F1&B0" if inward == 0 else "F0&B1 F1&B0")
        run("F0&B1 F1&B0", m // 2 - pp + near)
        run("B1 F1&B0", inward)
        whole = (near + 1) // 2
        if near % 2:  # an even number of pairs: half of them whole
            run("B1 B0", whole)
            run("I1 I0", whole)
        else:
            run("B1 B0", whole)
            run("B1 I0")
            run("I1 I0", near - whole)
        run("W I0", inward)
        run("W", near + 1)
        assert not pending
        assert set(count.values()) == {m // 2}
        orders.append(order)
    return orders


ORDERS = {
    ONE_F_ONE_B: one_f_one_b_order,
    INTERLEAVED: interleaved_order,
    ZB_H1: zb_h1_order,
    ZB_V: zb_v_order,
    GPIPE: gpipe_order,
    DUALPIPE: dualpipe_order,
}


@dataclass(frozen=True)
class Pipeline:
    """A schedule on devices of given times; ``forward``, ``inputs`` and ``weights`` are per device and micro-batch."""

    code: int
    pp: int
    m: int
    forward: list[float]
    inputs: list[float]
    weights: list[float]
    vpp: int = 1

    @property
    def backward(self) -> list[float]:
        return [i + w for i, w in zip(self.inputs, self.weights, strict=True)]

    @property
    def n_stages(self) -> int:
        return self.pp * self.vpp

    def run(self, send_s: float = 0.0) -> Replay:
        def seconds(op: Op) -> float:
            place = op.stage % self.pp
            if self.code == ZB_V:
                place = min(op.stage, 2 * self.pp - 1 - op.stage)
            forward, inputs, weights = self.forward[place], self.inputs[place], self.weights[place]
            return {"F": forward, "B": inputs + weights, "I": inputs, "W": weights}[op.kind] / self.vpp

        orders = ORDERS[self.code](self.pp, self.vpp, self.m)
        return replay(orders, seconds, n_stages=self.n_stages, send_s=send_s)

    def per_device(self, per_stage: list[float]) -> list[float]:
        """What one micro-batch costs a device on average; dualpipe's see it on one of their two stages."""
        if self.code != DUALPIPE:
            return per_stage
        return [(a + b) / 2 for a, b in zip(per_stage, reversed(per_stage), strict=True)]

    def estimate(self, send_s: float = 0.0) -> float:
        forward, backward, weights = map(self.per_device, (self.forward, self.backward, self.weights))
        slowest = int(np.argmax(np.add(forward, backward)))
        return float(
            pipeline_time_s(
                self.code,
                pp=self.pp,
                vpp=self.vpp,
                n_micro_batches=self.m,
                slowest_forward_s=forward[slowest],
                slowest_backward_s=backward[slowest],
                sum_forward_s=sum(forward),
                sum_backward_s=sum(backward),
                weight_grad_s=sum(weights) / self.pp,
                send_s=send_s,
            )
        )

    def bubble(self, send_s: float = 0.0) -> float:
        return float(
            bubble_time_s(
                self.code,
                pp=self.pp,
                vpp=self.vpp,
                n_micro_batches=self.m,
                forward_s=self.forward[0],
                backward_s=self.backward[0],
                weight_grad_s=self.weights[0],
                send_s=send_s,
            )
        )


def equal_stages(code: int, pp: int, m: int, f: float, i: float, w: float, vpp: int = 1) -> Pipeline:
    return Pipeline(code, pp, m, [f] * pp, [i] * pp, [w] * pp, vpp=2 if code == ZB_V else vpp)


def step_s(run: Replay) -> float:
    return max(run.end_s)


# --- equal stages: the closed forms are exact ------------------------------------------------------------------------

seconds = st.floats(0.5, 2.0)
ratio = st.floats(0.1, 1.0)


@given(
    code=st.sampled_from([ONE_F_ONE_B, GPIPE]),
    pp=st.integers(1, 8),
    m=st.integers(1, 20),
    f=seconds,
    i=seconds,
    w=seconds,
)
@settings(max_examples=60, deadline=None)
def test_1f1b_and_gpipe_take_what_the_formula_says(code, pp, m, f, i, w):
    pipeline = equal_stages(code, pp, m, f, i, w)
    took = step_s(pipeline.run())
    assert took == pytest.approx(m * (f + i + w) + pipeline.bubble(), rel=1e-9)
    assert took == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 6), rounds=st.integers(1, 4), vpp=st.integers(2, 4), f=seconds, i=seconds, w=seconds)
@settings(max_examples=60, deadline=None)
def test_interleaving_takes_what_the_formula_says(pp, rounds, vpp, f, i, w):
    pipeline = equal_stages(INTERLEAVED, pp, pp * rounds, f, i, w, vpp)
    took = step_s(pipeline.run())
    assert took == pytest.approx(pipeline.m * (f + i + w) + pipeline.bubble(), rel=1e-9)
    assert took == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), m=st.integers(1, 20), f=seconds, i=seconds, share=ratio)
@settings(max_examples=60, deadline=None)
def test_zb_h1_takes_what_the_formula_says(pp, m, f, i, share):
    """Where weight gradients take no longer than either other pass."""
    w = share * min(f, i)
    pipeline = equal_stages(ZB_H1, pp, m, f, i, w)
    took = step_s(pipeline.run())
    assert took == pytest.approx(m * (f + i + w) + pipeline.bubble(), rel=1e-9)
    assert took == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), more=st.integers(0, 12), w=seconds, f_over_w=st.floats(1, 2), i_over_f=st.floats(1, 2))
@settings(max_examples=60, deadline=None)
def test_zb_v_takes_what_the_formula_says(pp, more, w, f_over_w, i_over_f):
    """Where w <= f <= i, as in every transformer, and the step is long enough to fill the V."""
    f = w * f_over_w
    pipeline = equal_stages(ZB_V, pp, 2 * pp - 1 + more, f, f * i_over_f, w)
    took = step_s(pipeline.run())
    assert took == pytest.approx(pipeline.m * (f + f * i_over_f + w) + pipeline.bubble(), rel=1e-9)
    assert took == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), data=st.data(), w=seconds, f_over_w=st.floats(1, 2), i_over_f=st.floats(1, 2))
@settings(max_examples=60, deadline=None)
def test_zb_v_in_a_step_of_fewer_micro_batches_than_stages(pp, data, w, f_over_w, i_over_f):
    f = w * f_over_w
    pipeline = equal_stages(ZB_V, pp, data.draw(st.integers(1, pp)), f, f * i_over_f, w)
    assert step_s(pipeline.run()) == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), data=st.data(), f=seconds)
@settings(max_examples=40, deadline=None)
def test_zb_v_in_a_step_too_short_to_fill_the_v(pp, data, f):
    pipeline = equal_stages(ZB_V, pp, data.draw(st.integers(1, 2 * pp - 1)), f, f, f)
    assert step_s(pipeline.run()) == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(2, 8), f=seconds)
@settings(max_examples=30, deadline=None)
def test_zb_v_has_no_bubble_if_stages_need_not_end_together(pp, f):
    """The claim of its paper: with f = i = w, no stage ever waits between its first and its last operation."""
    pipeline = equal_stages(ZB_V, pp, 3 * pp, f, f, f)
    run = pipeline.run()
    starts = [device * f / 2 for device in range(pp)]  # half a stage per hop
    assert run.end_s == pytest.approx([start + pipeline.m * 3 * f for start in starts], rel=1e-9)


@given(pp=st.integers(1, 5).map(lambda half: 2 * half), more=st.integers(0, 6), f=seconds)
@settings(max_examples=40, deadline=None)
def test_dualpipe_takes_what_the_formula_says(pp, more, f):
    """Where f = i = w, the case its table is about."""
    pipeline = equal_stages(DUALPIPE, pp, 2 * pp + 2 * more, f, f, f)
    took = step_s(pipeline.run())
    assert took == pytest.approx(pipeline.m * 3 * f + pipeline.bubble(), rel=1e-9)
    assert took == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(
    pp=st.integers(1, 5).map(lambda half: 2 * half),
    more=st.integers(0, 6),
    w=seconds,
    f_over_w=st.floats(1, 2),
    i_over_f=st.floats(1, 1.5),
)
@settings(max_examples=60, deadline=None)
def test_dualpipe_is_estimated_at_most_a_little_too_long(pp, more, w, f_over_w, i_over_f):
    f = w * f_over_w
    pipeline = equal_stages(DUALPIPE, pp, 2 * pp + 2 * more, f, f * i_over_f, w)
    assert 1.0 - 1e-9 <= pipeline.estimate() / step_s(pipeline.run()) < 1.06


# --- unequal stages --------------------------------------------------------------------------------------------------


def random_times(data, pp: int, low: float, high: float) -> list[float]:
    return data.draw(st.lists(st.floats(low, high), min_size=pp, max_size=pp))


@given(pp=st.integers(1, 8), m=st.integers(1, 20), data=st.data())
@settings(max_examples=60, deadline=None)
def test_gpipe_is_exact_for_unequal_stages(pp, m, data):
    """One stage is slowest in both passes: backward passes take twice the forward ones."""
    forward = random_times(data, pp, 0.2, 2.0)
    pipeline = Pipeline(GPIPE, pp, m, forward, forward, forward)
    assert step_s(pipeline.run()) == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), rounds=st.integers(1, 4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_1f1b_is_exact_where_the_last_stage_is_slowest(pp, rounds, data):
    """The usual case: the LM head and the loss come on top of the layers."""
    pipeline = Pipeline(
        ONE_F_ONE_B,
        pp,
        pp * rounds,
        [*random_times(data, pp - 1, 0.2, 1.0), 1.5],
        [*random_times(data, pp - 1, 0.2, 1.0), 1.5],
        [*random_times(data, pp - 1, 0.2, 1.0), 1.5],
    )
    assert step_s(pipeline.run()) == pytest.approx(pipeline.estimate(), rel=1e-9)


@given(pp=st.integers(1, 8), rounds=st.integers(1, 4), data=st.data())
@settings(max_examples=100, deadline=None)
def test_1f1b_is_bounded_for_any_stages(pp, rounds, data):
    """Never longer than the docstring's four bounds; never too short where all stages are slow in the same passes."""
    forward, inputs, weights = (random_times(data, pp, 0.2, 2.0) for _ in range(3))
    alike = data.draw(st.booleans())
    if alike:
        inputs, weights = ([ratio * one for one in forward] for ratio in (inputs[0], weights[0]))
    pipeline = Pipeline(ONE_F_ONE_B, pp, pp * rounds, forward, inputs, weights)
    stage = np.add(pipeline.forward, pipeline.backward)
    slowest = int(np.argmax(stage))
    behind = pp - 1 - slowest
    work_behind = float(stage[slowest + 1 :].sum())
    slack = min(
        behind * pipeline.forward[slowest],
        behind * pipeline.backward[slowest],
        work_behind,
        behind * float(stage[slowest]) - work_behind,
    )
    excess = pipeline.estimate() - step_s(pipeline.run())
    assert excess <= slack + 1e-9
    assert not alike or excess >= -1e-9


@pytest.mark.parametrize(
    ("code", "mean", "worst"),
    [
        pytest.param(ONE_F_ONE_B, 0.02, 0.08, id="1f1b"),
        pytest.param(INTERLEAVED, 0.025, 0.13, id="interleaved"),
        pytest.param(ZB_H1, 0.02, 0.06, id="zb-h1"),
        pytest.param(ZB_V, 0.02, 0.07, id="zb-v"),
        pytest.param(DUALPIPE, 0.025, 0.13, id="dualpipe"),
    ],
)
def test_unequal_stages_cost_what_the_docstring_says(code, mean, worst):
    """Random stages within 20% of each other, f : i : w = 1 : 1.2 : 0.8; two to eight micro-batches per stage."""
    rng = np.random.default_rng(code)
    errors = []
    for _ in range(60):
        pp = int(rng.choice([2, 4, 6, 8]))
        m = pp * int(rng.choice([2, 4, 8]))
        stage = rng.uniform(0.8, 1.2, pp)
        vpp = {INTERLEAVED: int(rng.integers(2, 5)), ZB_V: 2}.get(code, 1)
        pipeline = Pipeline(code, pp, m, *((part * stage).tolist() for part in (1.0, 1.2, 0.8)), vpp=vpp)
        errors.append(pipeline.estimate() / step_s(pipeline.run()) - 1.0)
    assert min(errors) > -0.005  # hardly ever too short
    assert np.mean(np.abs(errors)) < mean
    assert max(errors) < worst


# --- micro-batches in flight -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", range(len(SCHEDULES)), ids=SCHEDULES)
@given(half=st.integers(1, 4), rounds=st.integers(2, 4), vpp=st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_micro_batches_in_flight(code, half, rounds, vpp):
    pp = 2 * half
    pipeline = equal_stages(code, pp, pp * rounds, 1.0, 1.0, 1.0, vpp if code == INTERLEAVED else 1)
    counted = in_flight_micro_batches_count(
        code, pp=float(pp), vpp=float(pipeline.vpp), n_micro_batches=float(pipeline.m), stage=np.arange(pp)
    )
    assert np.broadcast_to(counted, pp).tolist() == [peak / pipeline.vpp for peak in pipeline.run().peak_in_flight]


@given(code=st.sampled_from([ONE_F_ONE_B, GPIPE, ZB_H1, ZB_V]), pp=st.integers(1, 6), m=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_short_step_holds_no_more_than_it_has(code, pp, m):
    pipeline = equal_stages(code, pp, m, 1.0, 1.0, 1.0)
    counted = in_flight_micro_batches_count(code, pp=pp, vpp=pipeline.vpp, n_micro_batches=m, stage=np.arange(pp))
    peaks = np.array(pipeline.run().peak_in_flight) / pipeline.vpp
    if code == ZB_V and m < 2 * pp - 1:
        assert np.all(counted >= peaks)
        assert counted[-1] == peaks[-1]
    else:
        assert counted.tolist() == peaks.tolist()


# --- sends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", range(len(SCHEDULES)), ids=SCHEDULES)
@pytest.mark.parametrize("pp", [1, 2, 4, 8])
@pytest.mark.parametrize("rounds", [2, 4, 8])
def test_sends_that_a_step_waits_for(code, pp, rounds):
    """Short sends add what the two counts say, but for the two or so that the docstrings leave out."""
    if code == DUALPIPE and pp == 1:
        return
    for vpp in (2, 3) if code == INTERLEAVED else (1,):
        pipeline = equal_stages(code, pp, pp * rounds, 1.0, 1.0, 1.0, vpp)
        send_s = 1e-4
        waited = (step_s(pipeline.run(send_s)) - step_s(pipeline.run())) / send_s
        fill = fill_sends_count(code, pp=pp, vpp=pipeline.vpp)
        steady = steady_sends_count(code, pp=pp, n_micro_batches=pipeline.m)
        assert pipeline.estimate(send_s) - pipeline.estimate() == pytest.approx(send_s * fill)
        assert pipeline.bubble(send_s) - pipeline.bubble() == pytest.approx(send_s * fill)
        if code in (ONE_F_ONE_B, DUALPIPE):
            assert waited == pytest.approx(fill + steady, abs=2.0)
        else:
            assert steady == 0
            assert waited == pytest.approx(fill, abs=1e-6)


@given(pp=st.integers(2, 6), rounds=st.integers(2, 4), vpp=st.integers(2, 4), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_interleaving_hides_sends_shorter_than_a_chunk(pp, rounds, vpp, share):
    pipeline = equal_stages(INTERLEAVED, pp, pp * rounds, 1.0, 1.0, 1.0, vpp)
    send_s = share * 1.0 / vpp
    fill = fill_sends_count(INTERLEAVED, pp=pp, vpp=vpp)
    assert step_s(pipeline.run(send_s)) <= step_s(pipeline.run()) + fill * send_s + 1e-9


def test_every_tensor_is_sent_once():
    for code, vpp in ((ONE_F_ONE_B, 1), (INTERLEAVED, 3), (GPIPE, 1)):
        pp, m = 4, 8
        pipeline = equal_stages(code, pp, m, 1.0, 1.0, 1.0, vpp)
        done = pipeline.run().done
        boundaries = pp * vpp - 1
        received = sum(op.kind == "F" and op.stage > 0 for op in done) + sum(
            op.kind == "B" and op.stage < pp * vpp - 1 for op in done
        )
        assert received == 2 * m * boundaries
        inside = sends_count(pp=pp, vpp=vpp, n_micro_batches=m)
        assert inside * pp - 2 * m == received  # the first chunk receives no input, the last one no gradient


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_a_grid_of_schedules_equals_its_points():
    codes = np.array([ONE_F_ONE_B, INTERLEAVED, ZB_H1, ZB_V, GPIPE, DUALPIPE], dtype=float)
    vpp = np.array([1.0, 4.0, 1.0, 2.0, 1.0, 1.0])
    pp = np.array([1.0, 2.0, 8.0])[:, None, None]
    m = np.array([16.0, 64.0])[:, None]
    times = {"slowest_forward_s": 1.1, "slowest_backward_s": 2.4, "weight_grad_s": 0.9, "send_s": 0.01}
    grid = pipeline_time_s(
        codes, pp=pp, vpp=vpp, n_micro_batches=m, sum_forward_s=pp * 1.0, sum_backward_s=pp * 2.2, **times
    )
    flight = in_flight_micro_batches_count(codes, pp=pp, vpp=vpp, n_micro_batches=m, stage=0.0)
    assert grid.shape == (3, 2, 6)
    for (i, j, k), value in np.ndenumerate(grid):
        point = pipeline_time_s(
            codes[k],
            pp=pp[i, 0, 0],
            vpp=vpp[k],
            n_micro_batches=m[j, 0],
            sum_forward_s=pp[i, 0, 0] * 1.0,
            sum_backward_s=pp[i, 0, 0] * 2.2,
            **times,
        )
        assert value == pytest.approx(point, rel=1e-12)
        assert flight[i, j, k] == in_flight_micro_batches_count(
            codes[k], pp=pp[i, 0, 0], vpp=vpp[k], n_micro_batches=m[j, 0], stage=0.0
        )
