"""What is fitted: constants of devices and trainers, where physics puts each, and where they live."""

from __future__ import annotations

from dataclasses import dataclass

from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.specs.calibration import TRAINING_FACTOR
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.validation.runs import RunSetting


@dataclass(frozen=True)
class Constant:
    """One number to fit: where it lives, where physics puts it, how far it may go, how far without good reason."""

    kind: str
    """device or framework"""
    owner: str
    path: str
    prior: float
    low: float
    high: float
    spread: float
    """Standard deviation of the prior, as a factor (in logarithms)."""
    meaning: str

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.path}"


OLD = ("megatron_deepspeed", "megatron_legacy")
"""Trainers of eager PyTorch on the hosts of 2020 to 2022, whose launches took longest."""

FRAMEWORKS = ("aleph_scaling", "megatron_core", "fsdp_composer", "torchtitan", *OLD)

HOSTS = {"gb200_nvl72": ("gb200_nvl72", "gb300_nvl72", "gh200", "gh200_144gb")}
"""Machines that share a host, whose time per launch the runs of the first show: Grace."""

PROFILES = {"megatron_core": ("megatron", "megatron_bridge")}
"""Profiles that share their constants: one library underneath, whoever starts it."""

PRECISIONS = {
    "a100_80gb": ("bf16",),
    "h100": ("bf16", "fp8"),
    "h100_96gb_500w": ("bf16", "fp8"),
    "b200": ("bf16", "fp8", "mxfp8"),
    "gb200_nvl72": ("bf16", "fp8", "mxfp8", "nvfp4"),
}

POWER_PRIORS = {"h100_96gb_500w": TRAINING_FACTOR * (700.0 / 500.0) ** 0.75}
"""Where power is limited below that of the device whose kernels were measured: arithmetic slows less than power.

The exponent was chosen after a fit had shown 1.3 to 1.4 for this device, so its left-out error is not independent."""

SUSTAINED_PRIORS = {("b200", "bf16"): 1.46}
"""Where long matmuls were timed on a warm device: median of 26 of 0.5 ms and more over our equation of a cool one.

Of Llama 70B and 405B, from [moorethreads2025] (tests/published); the quartiles are 1.35 and 1.52."""


def training_prior(device: str, precision: str) -> float:
    return SUSTAINED_PRIORS.get((device, precision), POWER_PRIORS.get(device, TRAINING_FACTOR))


def training_spread(device: str, precision: str) -> float:
    """The least where kernels were timed on a warm device, or of attention."""
    return 0.06 if precision == "attention" or (device, precision) in SUSTAINED_PRIORS else 0.12


def constants_to_fit() -> list[Constant]:
    """All of them, with their priors."""
    found = [
        Constant(
            "device", name, f"training_factor.{precision}", training_prior(name, precision), 0.8, 2.0,
            training_spread(name, precision), "matmul (or attention) inside a training step over that on a cool device",
        )
        for name, precisions in PRECISIONS.items()
        for precision in (*precisions, "attention")
    ]  # fmt: skip
    found += [
        Constant(
            "attention",
            name,
            "flash1",
            prior,
            0.15,
            0.8,
            0.15,
            "rate of the first flash kernels over the measured ones",
        )
        for name, prior in (("a100_80gb", 0.5), ("h100", 0.28))
    ]
    for name in FRAMEWORKS:
        launch = 35.0 if name in OLD else 20.0
        # passes of Transformer Engine's reach 0.67 of a B200's bandwidth, plain copies 0.85 [moorethreads2025]
        spread = 0.1 if name == "megatron_core" else 0.3
        found += [
            Constant("framework", name, "host_launch_us", launch, 2.0, 80.0, 0.15, "host time per launch"),
            Constant(
                "framework", name, "memory_pass_factor", 1.3, 1.0, 2.0, spread, "memory traffic over that counted"
            ),
            Constant(
                "framework", name, "micro_batch_overhead_us", 300.0, 10.0, 1000.0, 1.0, "host time per micro-batch"
            ),
            Constant("framework", name, "step_overhead_us", 10000.0, 500.0, 100000.0, 1.0, "host time per step"),
        ]
    found += [
        Constant(
            "framework", name, "exchange_handover_us", 50.0, 1.0, 500.0, 0.5,
            "device time of a tensor-parallel exchange beyond its bytes",
        )
        for name in OLD
    ]  # fmt: skip
    # cores of 3.4 GHz for 3.8 to 4
    found += [
        Constant("host", name, "host_factor", 1.25, 0.8, 2.0, 0.15, "host time per launch over that of x86 servers")
        for name in HOSTS
    ]
    found.append(
        Constant(
            "framework", "megatron_core", "expert_pass_ratio", 1.0, 0.8, 2.5, 0.15,
            "memory traffic of experts over that of other passes, each over what is counted",
        )
    )  # fmt: skip
    found.append(
        Constant(
            "framework", "megatron_deepspeed", "unhidden_launches", 0.2, 0.01, 0.6, 1.0,
            "share of launches that the device waits for",
        )
    )  # fmt: skip
    for name in ("fsdp_composer", "torchtitan", "megatron_core"):
        found.append(
            Constant(
                "framework",
                name,
                "overlap_slowdown",
                0.15,
                0.01,
                0.6,
                0.2,
                "slowing of compute by communication behind it",
            )
        )
    return found


CONSTANTS = constants_to_fit()


def profiles_of(owner: str) -> tuple[str, ...]:
    return PROFILES.get(owner, (owner,))


def today(constant: Constant, registry: HardwareRegistry) -> float:
    """The value in configs."""
    if constant.kind == "device":
        calibration = registry.load(constant.owner).calibration
        key = constant.path.partition(".")[2]
        return calibration.slowing_in_training(key)
    if constant.kind == "host":
        return registry.load(constant.owner).calibration.host_factor
    if constant.kind == "attention":
        return registry.load(constant.owner).calibration.attention["bf16"].kernel_fractions[constant.path]
    return float(getattr(load_framework(profiles_of(constant.owner)[-1]), constant.path))


def changed(setting: RunSetting, values: dict[tuple[str, str, str], float]) -> tuple[HardwareSpec, Recipe]:
    """The run's hardware and recipe with these constants in place."""
    hardware, recipe = setting.hardware, setting.recipe
    own = {
        path.partition(".")[2]: value
        for (kind, owner, path), value in values.items()
        if kind == "device" and owner == hardware.name
    }
    if own:
        factors = {**hardware.calibration.training_factor, **own}
        hardware = hardware.model_copy(
            update={"calibration": hardware.calibration.model_copy(update={"training_factor": factors})}
        )
    kernels = {
        path: value for (kind, owner, path), value in values.items() if kind == "attention" and owner == hardware.name
    }
    if kernels:
        rates = {
            key: one.model_copy(update={"kernel_fractions": {**one.kernel_fractions, **kernels}})
            for key, one in hardware.calibration.attention.items()
        }
        hardware = hardware.model_copy(
            update={"calibration": hardware.calibration.model_copy(update={"attention": rates})}
        )
    host = values.get(("host", hardware.name, "host_factor"))
    if host is not None:
        hardware = hardware.model_copy(
            update={"calibration": hardware.calibration.model_copy(update={"host_factor": host})}
        )
    settings = {
        path: value
        for (kind, owner, path), value in values.items()
        if kind == "framework" and recipe.framework.name in profiles_of(owner)
    }
    if "host_launch_us" in settings:  # a row whose graphs replay some launches keeps its share of them
        usual = load_framework(recipe.framework.name).host_launch_us
        settings["host_launch_us"] *= recipe.framework.host_launch_us / usual
    if settings:
        recipe = recipe.model_copy(update={"framework": recipe.framework.model_copy(update=settings)})
    return hardware, recipe
