"""Constants of a device that no datasheet holds, each a physical quantity, fitted to kernel measurements."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dlcalc.specs.base import Fraction, NonNegativeFloat, PositiveFloat, Spec, TupleFromList

Tile = Annotated[tuple[int, ...], TupleFromList, Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, le=1)]


class MatmulRates(Spec):
    """How a matmul library runs on one device in one precision."""

    rate_fraction: Fraction
    """Achieved over peak rate in full waves of the first tile, K long, before power limits the clock."""
    tiles: Annotated[tuple[Tile, ...], TupleFromList, Field(min_length=1)]
    """(rows, columns) of output that one SM works on; the library picks the fastest."""
    tile_half: NonNegativeFloat = 0.0
    """Edge of a square tile that reaches half of the rate: smaller tiles reuse less of what they load."""
    k_half: NonNegativeFloat
    """K at which half of the asymptotic rate is reached (prologue and epilogue of a tile)."""
    wave_softness: Share = 0.0
    """Share of the idle part of the last wave that the library fills (other tiles, split-K, stream-K)."""
    hbm_fraction: Fraction
    """Achieved over peak memory bandwidth when memory-bound."""
    exposed_fraction: Share = 0.0
    """Share of the memory time of operands beyond L2 that arithmetic does not hide."""
    accumulate_exposed: Share = 0.0
    """Share that arithmetic does not hide of what adding to a buffer moves beyond a plain 16-bit result, at the peak
    bandwidth."""
    sustained_loss: NonNegativeFloat = 0.0
    """How much longer arithmetic takes once the device has worked long enough for power to limit its clock."""
    launch_us: NonNegativeFloat
    """Floor of one kernel on the device."""

    @property
    def launch_s(self) -> float:
        return self.launch_us * 1e-6


class AttentionRates(Spec):
    """Fused (flash) attention of one device in one precision."""

    rate_fraction: Fraction
    """Achieved over peak rate of the forward kernel: long sequences, heads of 128, before power limits the clock."""
    backward_fraction: Fraction
    """The same of the backward kernel."""
    softmax_width: NonNegativeFloat = 0.0
    """Width of the two matmuls per query-key pair that takes as long as its softmax."""
    seq_half: NonNegativeFloat
    """Keys at which half of the rate is reached: mask edges, prologue and epilogue of a tile of queries."""
    tail_tiles: NonNegativeFloat = 0.0
    """Tiles of queries (each against all its keys) that the last SM works on alone at the end."""
    sustained_loss: NonNegativeFloat = 0.0
    """How much longer arithmetic takes once the device has worked long enough for power to limit its clock."""
    launch_us: NonNegativeFloat
    kernel_fractions: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Rate of each kernel over that of the measured one."""
    pads_values: bool = False
    """Whether every kernel there has one width for queries, keys and values, so that narrower values are padded."""

    @property
    def launch_s(self) -> float:
        return self.launch_us * 1e-6


class MemoryRates(Spec):
    """Memory-bound kernels."""

    hbm_fraction: Fraction
    launch_us: NonNegativeFloat

    @property
    def launch_s(self) -> float:
        return self.launch_us * 1e-6


class CollectiveRates(Spec):
    """One collective operation over one kind of link, as fractions of the link's rate and times per step.

    A library has two protocols and takes the quicker one: low latency (few bytes at a time, flags inside the
    data) for small messages, full bandwidth for large ones.
    """

    bus_fraction: Fraction
    """Achieved over datasheet rate of the link, full-bandwidth protocol."""
    latency_us: PositiveFloat
    """Of one step (a hop of a ring, a message), low-latency protocol."""
    launch_us: NonNegativeFloat = 0.0
    """Floor of the kernel, whatever the size of the group."""
    low_latency_fraction: Fraction | None = None
    """Achieved over datasheet rate of the link, low-latency protocol; None: there is only one protocol."""
    bandwidth_latency_us: NonNegativeFloat = 0.0
    """Of one step, full-bandwidth protocol, where there are two."""
    bandwidth_step_us: NonNegativeFloat = 0.0
    """The least that one step takes, full-bandwidth protocol, however few bytes it passes on."""
    bandwidth_start_us: NonNegativeFloat = 0.0
    """What the full-bandwidth protocol adds before its first byte arrives, whatever the size of the group."""
    copy_fraction: PositiveFloat | None = None
    """Rate at which a device copies its own shard, over the link's rate; None: at no cost."""
    in_network_fraction: Fraction | None = None
    """Bytes reduced per second over the link's rate when the switch reduces (all_reduce only); None: it cannot."""
    in_network_start_us: NonNegativeFloat = 0.0
    """What a reduction in the switch adds before its first byte arrives."""

    @property
    def latency_s(self) -> float:
        return self.latency_us * 1e-6

    @property
    def launch_s(self) -> float:
        return self.launch_us * 1e-6

    @property
    def bandwidth_latency_s(self) -> float:
        return self.bandwidth_latency_us * 1e-6

    @property
    def bandwidth_step_s(self) -> float:
        return self.bandwidth_step_us * 1e-6

    @property
    def bandwidth_start_s(self) -> float:
        return self.bandwidth_start_us * 1e-6

    @property
    def in_network_start_s(self) -> float:
        return self.in_network_start_us * 1e-6


TRAINING_FACTOR = 1.12
"""What training steps of measured devices mostly show (1.05 to 1.20), for a device or precision that none was measured
on."""


class Calibration(Spec):
    """All fitted constants of one device."""

    matmul: dict[str, MatmulRates]
    """By precision; a precision that was not measured uses bf16's fractions of its own peak."""
    attention: dict[str, AttentionRates]
    memory: MemoryRates
    training_factor: dict[str, PositiveFloat] = {}
    """By precision, and for attention: time of arithmetic inside a training step over that on a cool device, from
    measured runs: power, layouts of gradients. One that is not named: ``TRAINING_FACTOR``."""
    host_factor: PositiveFloat = 1.0
    """The host's time per launch over that of the x86 servers on which trainers' were measured."""
    node_collectives: dict[str, CollectiveRates]
    """By operation: all_gather, reduce_scatter, all_reduce, all_to_all, send."""
    fabric_collectives: dict[str, CollectiveRates]
    provenance: str
    measured: bool
    """False: the family's fractions on this device's datasheet; intervals are wider."""

    def slowing_in_training(self, kind: str) -> float:
        """``training_factor`` of a precision, or of ``attention``."""
        return self.training_factor.get(kind, TRAINING_FACTOR)
