"""What changes the network that is trained, but no time and no memory: a launch writes it, no estimate reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dlcalc.specs.base import NonNegativeFloat, PositiveFloat, PositiveInt, Spec

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]
"""relu2: the square of a ReLU; quick_gelu: x times the sigmoid of 1.702 x."""


class RotaryScaling(Spec):
    """How rotary positions are stretched over sequences longer than those first trained on."""

    kind: Literal["yarn", "llama3", "linear", "longrope", "dynamic"]
    factor: PositiveFloat = 1.0
    original_max_seq: PositiveInt = 4096
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    """Of YaRN: rotations within the original sequence, above and below which a frequency is kept or divided."""
    mscale: NonNegativeFloat = 1.0
    mscale_all_dim: NonNegativeFloat = 0.0
    """Of YaRN: how far its scale of attention is on rotary dimensions, and on all; 1 and 0 are its authors'."""
    rounds: bool = True
    """Of YaRN: bounds of the ramp are whole dimensions."""
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    """Of Llama 3: wavelengths, as parts of the original sequence, between which the stretch sets in."""


class Rotary(Spec):
    """Rotary positions."""

    base: PositiveFloat | None = None
    """None: not known."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of a head's dimensions that turn."""
    scaling: RotaryScaling | None = None


class Router(Spec):
    """How a mixture of experts chooses and weighs the experts of a token."""

    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalizes: bool = True
    """Weights of the chosen experts add up to one."""
    scale: PositiveFloat = 1.0
    """What their outputs are multiplied by."""
    bias_update: NonNegativeFloat | None = None
    """Step of a bias per expert that balances loads without a loss; None: there is no such bias."""
    balance_loss: NonNegativeFloat | None = None
    """Coefficient of the loss that balances loads; None: not known."""
    balances: Literal["batch", "sequence"] = "batch"
    """Over what that loss is taken."""
