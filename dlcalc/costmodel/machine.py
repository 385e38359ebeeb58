"""The rates of one device for one recipe, picked out of the hardware once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dlcalc.calculators.kernels import L2_BYTES
from dlcalc.specs.calibration import AttentionRates, MatmulRates, MemoryRates
from dlcalc.specs.hardware import HardwareSpec, Precision
from dlcalc.specs.recipe import Recipe

SIXTEEN_BIT = {"fp16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class MatmulMachine:
    """What a matmul of one precision runs on."""

    rates: MatmulRates
    peak_flops_per_s: float
    hbm_bytes_per_s: float
    n_sms: float
    input_bytes: float
    l2_bytes: float
    training_factor: float
    """Time of arithmetic inside a training step over that on a cool device."""


@dataclass(frozen=True)
class Machine:
    """A device seen by one recipe."""

    hardware: HardwareSpec
    recipe: Recipe

    @cached_property
    def linear(self) -> MatmulMachine:
        """The linear layers' matmuls, in the recipe's precision."""
        return self._matmul(self.recipe.precision)

    @cached_property
    def sixteen_bit(self) -> MatmulMachine:
        """What stays in 16 bits whatever the recipe: the LM head, the router."""
        return self._matmul(self.compute_precision)

    @property
    def compute_precision(self) -> Precision:
        return "fp16" if self.recipe.precision == "fp16" else self.hardware.device.sixteen_bits

    @property
    def attention(self) -> AttentionRates:
        return self.hardware.calibration.attention["bf16"]

    @property
    def attention_training_factor(self) -> float:
        """Time of attention's arithmetic inside a training step over that on a cool device."""
        return self.hardware.calibration.slowing_in_training("attention")

    @property
    def attention_peak_flops_per_s(self) -> float:
        return self.hardware.device.peak_flops_per_s(self.compute_precision)

    @property
    def memory(self) -> MemoryRates:
        return self.hardware.calibration.memory

    @property
    def hbm_bytes_per_s(self) -> float:
        return self.hardware.device.hbm_bytes_per_s

    @property
    def n_sms(self) -> float:
        return self.hardware.device.n_sms.value

    def _rates_key(self, precision: Precision) -> str:
        """Which kernels: fp8 with a scale per row or block has its own."""
        return "fp8_block" if precision == "fp8" and self.recipe.scaling == "block" else precision

    def _matmul(self, precision: Precision) -> MatmulMachine:
        rates = self.hardware.calibration.matmul
        return MatmulMachine(
            rates=rates.get(self._rates_key(precision), rates.get(precision, rates["bf16"])),
            peak_flops_per_s=self.hardware.device.peak_flops_per_s(precision),
            hbm_bytes_per_s=self.hbm_bytes_per_s,
            n_sms=self.n_sms,
            input_bytes=ELEMENT_BYTES[precision],
            l2_bytes=self.hardware.device.l2_mib.value * 2.0**20 if self.hardware.device.l2_mib else L2_BYTES,
            training_factor=self.hardware.calibration.slowing_in_training("bf16" if precision == "fp16" else precision),
        )


ELEMENT_BYTES: dict[Precision, float] = {
    "fp32": 4.0,
    "tf32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "mxfp8": 1.03,
    "nvfp4": 0.56,
}
"""Of a matmul's input, scales included (mxfp8: one byte per 32; nvfp4: one byte per 16)."""
