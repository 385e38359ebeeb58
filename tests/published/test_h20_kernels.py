"""Kernels of the H20, whose constants are an H100's but for what its own measurements say.

Attention: https://github.com/Dao-AILab/flash-attention/issues/1310, FlashAttention-3, forward, two sequences of 2,048
tokens, 16 heads of 128. Matmul: https://github.com/zzc0721/torch-performance-test-data/issues/77, cuBLAS in bf16.
"""

import pytest

from dlcalc.calculators.kernels import attention_forward_time_s, matmul_time_s
from dlcalc.hardware_registry import load_hardware

H20 = load_hardware("h20")
DEVICE = {
    "peak_flops_per_s": H20.device.peak_flops_per_s("bf16"),
    "hbm_bytes_per_s": H20.device.hbm_bytes_per_s,
    "n_sms": H20.device.n_sms.value,
}


@pytest.mark.parametrize(("causal", "tflops"), [(True, 107.8), (False, 126.2)])
def test_attention(causal, tflops):
    """A tenth slow either way: the last tiles of 32 heads weigh as on the H100 that they were fitted to."""
    shape = {"batch": 2.0, "n_heads": 16.0, "n_kv_heads": 16.0, "qk_head_dim": 128.0, "v_head_dim": 128.0}
    seconds = attention_forward_time_s(
        2048.0, 2048.0, causal=causal, kernel="flash3", rates=H20.calibration.attention["bf16"], **shape, **DEVICE
    )
    done = 4 * 2048**2 * 128 * 32 * (0.5 if causal else 1.0)
    assert done / seconds / 1e12 == pytest.approx(0.9 * tflops, rel=0.05)


@pytest.mark.parametrize(("size", "tflops"), [(8192.0, 138.6), (10240.0, 142.3)])
def test_matmul(size, tflops):
    seconds = matmul_time_s(
        size, size, size, groups=1.0, rates=H20.calibration.matmul["bf16"], input_bytes=2.0,
        l2_bytes=H20.device.l2_mib.value * 2**20, **DEVICE,
    )  # fmt: skip
    assert 2 * size**3 / seconds / 1e12 == pytest.approx(tflops, rel=0.03)
