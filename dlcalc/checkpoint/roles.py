"""What a tensor is for, by its name: the model, the optimizer's state, buffers, random states.

Names are those of PyTorch's optimizers, of Adam's variants elsewhere, and of Megatron, DeepSpeed, Lightning and
bitsandbytes, which write optimizer state under names of their own.
"""

from __future__ import annotations

import re
from typing import Literal

from dlcalc.checkpoint.contents import Tensor

Role = Literal["model", "buffers", "optimizer", "random state"]
ROLES: tuple[Role, ...] = ("model", "buffers", "optimizer", "random state")

_MOMENTS = {
    "exp_avg": "first moment (Adam)",
    "exp_avg_sq": "second moment (Adam)",
    "max_exp_avg_sq": "largest second moment (AMSGrad)",
    "exp_avg_sq_row": "second moment, rows (Adafactor)",
    "exp_avg_sq_col": "second moment, columns (Adafactor)",
    "exp_inf": "infinity norm (Adamax)",
    "mu_product": "momentum product (NAdam)",
    "momentum_buffer": "momentum (SGD, Muon)",
    "square_avg": "squared average (RMSprop, Adadelta)",
    "grad_avg": "gradient average (RMSprop)",
    "acc_delta": "accumulated updates (Adadelta)",
    "state1": "first moment (8-bit)",
    "state2": "second moment (8-bit)",
    "qmap1": "quantization (8-bit)",
    "qmap2": "quantization (8-bit)",
    "absmax1": "quantization (8-bit)",
    "absmax2": "quantization (8-bit)",
}
"""By the last part of the name, or by a part of it where Megatron puts the parameter's name last."""

_MASTER = frozenset(
    {
        *("fp32_param", "fp32_from_fp16_params", "fp32_from_fp16", "master_param", "master_weight", "master_weights"),
        *("fp32_flat_groups", "single_partition_of_fp32_groups", "shard_fp32_from_float16_groups"),
    }
)
_OPTIMIZER = re.compile(r"optim(izer)?s?(_states?)?(_dict)?|opt_states?|optim_states|distrib_optim", re.IGNORECASE)
_OPTIMIZER_FILE = re.compile(r"(.*_)?optim_states|distrib_optim|optim(izer)?", re.IGNORECASE)
_RANDOM = re.compile(
    r"((torch|cuda|cpu|xla|npu|hpu|python|numpy|random)_?)*rng_?((state|tracker)s?)*_?(cuda|cpu)?", re.IGNORECASE
)
_BUFFERS = frozenset(
    {*("running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids", "masked_bias", "_extra_state")}
)


def parts_of(name: str) -> list[str]:
    """The parts of a name, outermost first: at most 64, of which the last may hold further dots."""
    return re.split(r"[./]", name, maxsplit=63)


def role_of(tensor: Tensor) -> tuple[Role, str]:
    """What ``tensor`` is for, and which kind of that; the kind is empty but for the optimizer."""
    parts = parts_of(tensor.name)
    last = parts[-1]
    if last in _MOMENTS and last not in {"state1", "state2"}:
        return "optimizer", _MOMENTS[last]
    if any(_OPTIMIZER.fullmatch(part) or _OPTIMIZER_FILE.fullmatch(part) for part in parts[:-1]):
        return "optimizer", _optimizer_kind(parts)
    if _MASTER.intersection(parts) or (len(parts) == 3 and parts[0] == "state" and parts[1].isdecimal()):
        return "optimizer", _optimizer_kind(parts)
    if tensor.dtype == "uint8" and any(map(_RANDOM.fullmatch, parts)):
        return "random state", ""
    if last in _BUFFERS or tensor.dtype == "bool":
        return "buffers", ""
    return "model", ""


def _optimizer_kind(parts: list[str]) -> str:
    if _MASTER.intersection(parts):
        return "master weights"
    for part in reversed(parts):
        if part in _MOMENTS:
            return _MOMENTS[part]
    if parts[-1] == "step":
        return "step counts"
    if parts[-1] == "param":
        return "master weights"
    return "other"
