"""What a comparison is asked, and the prices and powers it rests on: the user's, else those of the hardware files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dlcalc.errors import DlcalcError, UnknownNameError, nearest
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.compare_facts import Axis, Failures, MachineInputs, ObjectiveName
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.quantities import positive_number

MOST_PUE = 10.0
DEVICE_ALONE = "TDP of the device alone"


@dataclass(frozen=True)
class Asked:
    """The options of a comparison."""

    by: tuple[Axis, ...] = ("hardware",)
    objective: ObjectiveName | None = None
    """None: tokens per dollar where every price is known, else step time."""
    tokens: float | None = None
    """None: what each recipe says."""
    budget_usd: float | None = None
    deadline_days: float | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    """USD per device-hour by name or alias of a machine."""
    powers: Mapping[str, float] = field(default_factory=dict)
    """Watts per device, with its share of the host, by name or alias of a machine."""
    pue: float = 1.0
    failures: Failures | None = None


def machine_inputs(machines: Mapping[str, HardwareSpec], asked: Asked) -> dict[str, MachineInputs]:
    """Price and power of every machine, by its label; what was given wins over the machine's own file."""
    prices = _by_label("--price", asked.prices, machines)
    powers = _by_label("--power", asked.powers, machines)
    found = {}
    whole = all(hardware.node.host_w_per_device for label, hardware in machines.items() if label not in powers)
    for label, hardware in machines.items():
        price = hardware.price
        device_w, host_w = (None, None) if label in powers else _watts(hardware, with_host=whole)
        found[label] = MachineInputs(
            machine=label,
            usd_per_device_hour=prices.get(label, price.usd_per_device_hour if price else None),
            price_source="--price" if label in prices else _price_source(hardware),
            watts_per_device=powers.get(label, device_w and device_w + (host_w or 0.0)),
            host_watts_per_device=host_w,
            power_source="--power" if label in powers else _power_source(hardware, with_host=whole),
            is_measured=hardware.calibration.measured,
        )
    return found


def _price_source(hardware: HardwareSpec) -> str:
    price = hardware.price
    return f"{price.source} ({price.date})" if price else "not known; give --price"


def _watts(hardware: HardwareSpec, *, with_host: bool) -> tuple[float | None, float | None]:
    """Of the device, and its share of the rest of the node, where that is known of every machine compared."""
    device, host = hardware.device.tdp_w, hardware.node.host_w_per_device if with_host else None
    return device.value if device else None, host.value if host and device else None


def _power_source(hardware: HardwareSpec, *, with_host: bool) -> str:
    device, host = hardware.device.tdp_w, hardware.node.host_w_per_device if with_host else None
    if device is None:
        return "not published; give --power"
    if host is None:
        return f"{DEVICE_ALONE}, {device.source}"
    return f"TDP and share of the host, {device.source}; {host.source}"


def _by_label(option: str, given: Mapping[str, float], machines: Mapping[str, HardwareSpec]) -> dict[str, float]:
    """What was given, by label of the machine it means; a name of no compared machine is a mistake."""
    found: dict[str, float] = {}
    for name, value in given.items():
        meant = [label for label, hardware in machines.items() if _plain(name) in _names(label, hardware)]
        if not meant:
            raise DlcalcError(f"{option} {name}: {_no_such_machine(name, machines)}")
        for label in meant:
            if label in found:
                raise DlcalcError(f"{option} {name}: {label} is given twice")
            found[label] = value
    return found


def _no_such_machine(name: str, machines: Mapping[str, HardwareSpec]) -> str:
    """A machine that is not compared, or no machine."""
    if _plain(name) in {_plain(known) for known in HardwareRegistry().names(aliases=True)}:
        return f"is not among the compared machines, which are {', '.join(machines)}"
    known = {one for hardware in machines.values() for one in (hardware.name, *hardware.aliases)}
    return str(UnknownNameError("hardware", name, known if nearest(name, known) else machines))


def _names(label: str, hardware: HardwareSpec) -> set[str]:
    return {_plain(name) for name in (label, hardware.name, *hardware.aliases)}


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")


def site_factor(text: str) -> float:
    """A power usage effectiveness: at least 1, since the site holds the devices."""
    pue = positive_number(text, "--pue", "1.25")
    if not 1.0 <= pue <= MOST_PUE:
        raise DlcalcError(
            f"--pue: {text} is not a power usage effectiveness; it is from 1 to {MOST_PUE:g}, such as 1.25"
        )
    return pue
