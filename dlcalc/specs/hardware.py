"""Device, node and fabric: one YAML file per machine, every number with its source.

YAML keys use the units people quote (GiB, TFLOP/s, GB/s, Gbit/s, us); properties give base units. Rates of links are
per device and one direction; datasheets often print both directions together, and a node's fabric rather than a
device's. How files extend one another, and where they are found, is ``hardware_registry``'s business.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dlcalc.specs.base import Degree, PositiveFloat, PositiveInt, Quoted, Spec, TupleFromList
from dlcalc.specs.calibration import Calibration
from dlcalc.utils.units import GIB

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]

Family = Literal[
    "nvidia_volta",
    "nvidia_ampere",
    "nvidia_ada",
    "nvidia_hopper",
    "nvidia_blackwell",
    "amd_cdna2",
    "amd_cdna3",
    "amd_cdna4",
    "google_tpu",
    "aws_trainium",
    "intel_gaudi",
    "other",
]


class Device(Spec):
    """One accelerator. Peaks are dense (no structured sparsity)."""

    peak_tflops: dict[Precision, Quoted]
    n_sms: Quoted
    """Streaming multiprocessors, compute units or cores: what a tile of a matmul occupies."""
    hbm_gib: Quoted
    """Nominal; vendors write GB and mean GiB."""
    hbm_tb_per_s: Quoted
    usable_hbm_gib: Quoted | None = None
    """What the driver reports as total; None: all of hbm_gib."""
    usable_beside_context: bool = False
    """Whether the usable memory is all a program's: what its process holds besides has been set apart."""
    l2_mib: Quoted | None = None
    """The last cache before HBM."""
    tdp_w: Quoted | None = None
    """None: not published."""
    lacks_attention: Annotated[tuple[str, ...], TupleFromList] = ()
    """Attention kernels that do not exist for it; a trainer then runs its masked softmax."""

    @property
    def hbm_bytes(self) -> float:
        return (self.usable_hbm_gib or self.hbm_gib).value * GIB

    @property
    def hbm_bytes_per_s(self) -> float:
        return self.hbm_tb_per_s.value * 1e12

    @property
    def tdp_watts(self) -> float | None:
        return self.tdp_w.value if self.tdp_w else None

    @property
    def sixteen_bits(self) -> Precision:
        """bf16, or fp16 on a device from before it."""
        return "bf16" if "bf16" in self.peak_tflops else "fp16"

    def peak_flops_per_s(self, precision: Precision) -> float:
        return self.peak_tflops[precision].value * 1e12

    @model_validator(mode="after")
    def _sixteen_bits_are_there(self) -> Self:
        if not {"fp16", "bf16"} & self.peak_tflops.keys():
            raise ValueError("peak_tflops needs fp16 or bf16, in which attention and the LM head run")
        return self

    @model_validator(mode="after")
    def _usable_is_part_of_nominal(self) -> Self:
        if self.usable_hbm_gib and self.usable_hbm_gib.value > self.hbm_gib.value:
            raise ValueError(
                f"usable_hbm_gib = {self.usable_hbm_gib.value:g} must not exceed hbm_gib = {self.hbm_gib.value:g}"
            )
        return self


class Group(Spec):
    """Neighbours in a node whose links are not those of all its devices together: a bridged pair, dies of a package."""

    n_devices: Annotated[int, Field(ge=2)]
    link_gb_per_s: Quoted
    """Of one device to the others of its group, one direction."""


class Torus(Spec):
    """How the devices of a node are joined to their neighbours, two links along every axis."""

    n_axes: Annotated[int, Field(ge=1, le=6)]
    closed_from: Degree
    """Devices of a job in one torus from which its slice closes to rings along every axis; smaller ones have ends."""
    closed_axis_from: Degree | None = None
    """Length from which an axis closes whatever the others do; None: they close together."""
    reshapes: bool = False
    """Whether a slice is cut to the job, so that its groups lie along whole axes (optical switches)."""


class Node(Spec):
    """Devices that share one domain of fast links: NVLink, Infinity Fabric, or PCIe where there is nothing else."""

    n_devices: Degree
    n_host_devices: Degree | None = None
    """Devices that one operating system sees, where a node is several hosts (a rack of NVL72); None: all of them."""
    topology: Literal["switch", "mesh", "torus"] = "switch"
    """What the links form: through a switch any pair or group has the full rate; in a mesh each pair has its own
    link, so a group of n has (n - 1) / (n_devices - 1) of it; in a torus a group has the links of its axes."""
    torus: Torus | None = None
    """Of the axes, where the topology is a torus."""
    link_gb_per_s: Quoted
    """Of all links of a device together, one direction."""
    groups: Annotated[tuple[Group, ...], TupleFromList] = ()
    """Smaller groups of neighbours with a rate of their own, whatever the topology says of them."""
    link_latency_us: Quoted
    """Of the wire, on top of what ``calibration`` says of a step."""
    host_link_gb_per_s: Quoted
    """Device to host memory (PCIe, C2C), per device, one direction."""
    shares_host_memory: bool = False
    """Whether the host's memory is the devices' own (an APU), so that nothing can be moved out of the way there."""
    host_w_per_device: Quoted | None = None
    """A device's share of what the rest of its node draws at most: processors, links, ports, fans, losses of power
    supplies. None: not published."""
    in_network_reduction: bool = False
    """Whether the switch reduces (NVLink SHARP)."""

    @property
    def link_bytes_per_s(self) -> float:
        return self.link_gb_per_s.value * 1e9

    @property
    def link_latency_s(self) -> float:
        return self.link_latency_us.value * 1e-6

    @property
    def host_bytes_per_s(self) -> float:
        return self.host_link_gb_per_s.value * 1e9

    @property
    def device_bytes_per_s(self) -> float:
        """Of the fastest links that a device has."""
        return max(self.link_gb_per_s.value, *(group.link_gb_per_s.value for group in self.groups), 0.0) * 1e9

    def with_devices(self, n_devices: int) -> Node:
        """This node with some of its devices, whose links are the same; or a larger one behind a switch."""
        hosts = self.n_host_devices
        changes: dict[str, object] = {
            "n_devices": n_devices,
            "n_host_devices": hosts if hosts and n_devices % hosts == 0 else None,
            "groups": tuple(group for group in self.groups if group.n_devices < n_devices <= self.n_devices),
        }
        if n_devices > self.n_devices:
            changes["topology"] = "torus" if self.torus else "switch"
        elif self.topology == "mesh" and n_devices > 1:
            share = (n_devices - 1) / (self.n_devices - 1)
            changes["link_gb_per_s"] = self.link_gb_per_s.model_copy(update={"value": self.link_gb_per_s.value * share})
        return self.model_copy(update=changes)

    def devices_of_job(self, n_devices: int) -> int:
        """Devices of each node that a job of ``n_devices`` gets: all of them, but for racks.

        Of racks (nodes of several hosts) a job of more than one gets equally many hosts of each, of as few racks as
        that allows: of 72 devices 64, for a job of 256, whose groups of 2^n ranks then stay in a rack. Where more than
        half of every rack would be idle, racks are filled one after the other.
        """
        host = self.n_host_devices
        if host is None or self.torus is not None or n_devices <= self.n_devices or n_devices % host:
            return self.n_devices
        hosts, most = n_devices // host, self.n_devices // host
        racks = next((n for n in range(-(-hosts // most), 2 * hosts // most + 1) if hosts % n == 0), None)
        return self.n_devices if racks is None else hosts // racks * host

    @model_validator(mode="after")
    def _groups_are_smaller(self) -> Self:
        sizes = [group.n_devices for group in self.groups]
        if sizes != sorted(set(sizes)) or (sizes and sizes[-1] >= self.n_devices):
            raise ValueError(f"groups of {sizes} devices must grow, and be smaller than the node's {self.n_devices}")
        return self

    @model_validator(mode="after")
    def _a_torus_has_axes(self) -> Self:
        if (self.topology == "torus") != (self.torus is not None):
            raise ValueError("topology: torus and torus: {n_axes: ..., closed_from: ...} need each other")
        return self


class Fabric(Spec):
    """What connects nodes."""

    nic_gbit_per_s_per_device: Quoted
    """One direction; a node's total over its devices."""
    devices_per_nic: PositiveInt = 1
    """Devices that share a port; one that sends while the others do not has all of it."""
    latency_us: Quoted
    """Of the wire and switches, on top of what ``calibration`` says of a step."""
    in_network_reduction: bool = False
    """Whether the switches reduce (SHARP)."""

    @property
    def nic_bytes_per_s_per_device(self) -> float:
        return self.nic_gbit_per_s_per_device.value * 1e9 / 8

    @property
    def latency_s(self) -> float:
        return self.latency_us.value * 1e-6


class Price(Spec):
    """Hourly price of one device, as quoted on a day; an input of cost, never of time."""

    usd_per_device_hour: PositiveFloat
    date: Annotated[str, Field(pattern=r"^(\d{4}(-\d{2}){0,2}|given)$")]
    """YYYY, YYYY-MM or YYYY-MM-DD; ``given``: it is what the user pays."""
    source: Annotated[str, Field(min_length=8)]


class HardwareSpec(Spec):
    """A machine that can be bought or rented."""

    name: Annotated[str, Field(min_length=1)]
    description: str
    family: Family
    aliases: Annotated[tuple[str, ...], TupleFromList] = ()
    device: Device
    node: Node
    fabric: Fabric
    price: Price | None = None
    calibration: Calibration

    @property
    def precisions(self) -> tuple[Precision, ...]:
        return tuple(self.device.peak_tflops)
