"""Runs a torchtitan program on CPUs: what needs a GPU is put in place of, everything else is torchtitan's own.

Put in place of: the attention kernel (FlexAttention has no backward pass on CPUs), device queries, and FSDP's gradient
factor (a reduction that Gloo lacks). The tensors' backend is the one that PyTorch 2.13 can run.
"""

import collections
import os
import runpy
import sys
from types import SimpleNamespace

import torch
import torch._utils

torch._utils._get_available_device_type = lambda: "cpu"
for name, answer in {
    "set_device": None,
    "current_device": 0,
    "device_count": 8,
    "get_device_name": "cpu",
    "get_device_properties": SimpleNamespace(name="cpu", total_memory=2**30),
    "memory_stats": collections.defaultdict(int),
    "reset_peak_memory_stats": None,
    "empty_cache": None,
}.items():
    setattr(torch.cpu, name, lambda *_, answer=answer: answer)

from torchtitan.distributed import fsdp  # noqa: E402  # reads the device as it is imported
from torchtitan.models.common.attention import FlexAttention  # noqa: E402

if not hasattr(torch.distributed, "set_timeout"):  # PyTorch 2.13 has not what torchtitan 0.3.0 calls
    torch.distributed.set_timeout = lambda *_, **__: None
fsdp.disable_fsdp_gradient_division = lambda model: None


def attend(query, key, value, *, scale=None, enable_gqa=False, **_):
    """Causal attention; under context parallelism, where keys are more than queries, of everything."""
    causal = query.shape[2] == key.shape[2]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scale, enable_gqa=enable_gqa
    )
    return out, SimpleNamespace(lse=out.sum(-1))


FlexAttention.compiled_flex_attn = staticmethod(attend)
sys.argv = [*sys.argv[1:-1], "--parallelism.spmd_backend", "partial_dtensor", sys.argv[-1]]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
