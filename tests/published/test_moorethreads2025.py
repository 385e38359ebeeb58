"""SimuMax, configs/system/b200_bf16_ceperm.json: kernels timed alone on one B200, sequences of 4,096 tokens.

The constants of the B200 come from other measurements (docs/kernels.md). Read from this table were that the backward
kernel has a quarter of the forward one's tail, what gathering rows costs, and how much longer than on a cool device
long matmuls take, the prior of those in a step. Its heads of 128 check the ramp over heads; the level comes out 6 to
22 % too slow. Attention, a millisecond at most, is compared with a cool device, experts' matmuls with one in a step.
The table counts full attention, backward as 2.5 times forward.
"""

import numpy as np
import pytest

from dlcalc.calculators.kernels import attention_backward_time_s, matmul_time_s
from dlcalc.calculators.traffic import routing_traffic_bytes
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework

B200 = load_hardware("b200")
PEAK = 2250e12


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "published_share"),
    [
        (8, 1, 0.6586), (16, 2, 0.7553), (32, 4, 0.7963), (64, 8, 0.7294), (128, 16, 0.8316),
        (8, 2, 0.6326), (16, 4, 0.7416), (32, 8, 0.7870),
    ],
)  # fmt: skip
def test_backward_attention_from_few_heads_to_many(n_heads, n_kv_heads, published_share):
    seconds = attention_backward_time_s(
        4096.0,
        4096.0,
        batch=1.0,
        n_heads=float(n_heads),
        n_kv_heads=float(n_kv_heads),
        qk_head_dim=128.0,
        v_head_dim=128.0,
        rates=B200.calibration.attention["bf16"],
        peak_flops_per_s=PEAK,
        hbm_bytes_per_s=B200.device.hbm_bytes_per_s,
        n_sms=B200.device.n_sms.value,
        kernel="te_flash",
    )
    flops = 2.5 * 2 * 4096**2 * n_heads * (128 + 128)
    assert flops / PEAK / seconds == pytest.approx(published_share, rel=0.2)


LONG_MATMULS = {  # rows, columns, depth: share of the peak; those that add to fp32 gradients apart
    False: {
        (4096, 57344, 8192): 0.4867, (4096, 8192, 57344): 0.4829, (4096, 8192, 28672): 0.4847,
        (4096, 28672, 8192): 0.4742, (4096, 128256, 8192): 0.4874, (4096, 8192, 128256): 0.4710,
        (4096, 8192, 10240): 0.4980, (4096, 8192, 8192): 0.4625, (4096, 14336, 8192): 0.4937,
        (4096, 8192, 14336): 0.4923, (4096, 20480, 16384): 0.5325, (4096, 16384, 20480): 0.5135,
        (4096, 106496, 16384): 0.4961, (4096, 16384, 106496): 0.5116, (4096, 16384, 16384): 0.5097,
        (4096, 16384, 53248): 0.5109,
    },
    True: {
        (57344, 8192, 4096): 0.4536, (8192, 28672, 4096): 0.4594, (128256, 8192, 4096): 0.4548,
        (10240, 8192, 4096): 0.5979, (8192, 8192, 4096): 0.4789, (14336, 8192, 4096): 0.4756,
        (20480, 16384, 4096): 0.4547, (106496, 16384, 4096): 0.4562, (16384, 16384, 4096): 0.4523,
        (16384, 53248, 4096): 0.4536,
    },
}  # fmt: skip


def test_long_matmuls_took_what_the_prior_of_a_step_says():
    """Llama 70B and 405B, half a millisecond and more: 1.46 times the cool device's time, half within 1.35 and 1.52."""
    assert B200.device.l2_mib is not None
    longer = [
        2.0 * m * n * k / (share * PEAK)
        / matmul_time_s(
            m, n, k, output_bytes=8.0 if adds else 2.0, rates=B200.calibration.matmul["bf16"],
            peak_flops_per_s=PEAK, hbm_bytes_per_s=B200.device.hbm_bytes_per_s, n_sms=B200.device.n_sms.value,
            l2_bytes=B200.device.l2_mib.value * 2.0**20, arithmetic_factor=1.0,
        )
        for adds, matmuls in LONG_MATMULS.items()
        for (m, n, k), share in matmuls.items()
    ]  # fmt: skip
    assert np.median(longer) == pytest.approx(1.46, abs=0.01)
    assert np.quantile(longer, [0.25, 0.75]) == pytest.approx([1.35, 1.52], abs=0.01)


def test_adding_to_fp32_gradients_shows_in_the_weight_gradients_of_experts():
    """20 experts of 1,232 tokens: weight gradients 1.57 times as long as the forward pass of as many flops."""

    def seconds(m: float, n: float, k: float, output_bytes: float) -> float:
        return float(
            matmul_time_s(
                m, n, k, groups=20.0, output_bytes=output_bytes, rates=B200.calibration.matmul["bf16"],
                peak_flops_per_s=PEAK, hbm_bytes_per_s=B200.device.hbm_bytes_per_s, n_sms=B200.device.n_sms.value,
                arithmetic_factor=B200.calibration.slowing_in_training("bf16"),
            )
        )  # fmt: skip

    forward, weights = seconds(1232.0, 3072.0, 5120.0, 2.0), seconds(3072.0, 5120.0, 1232.0, 8.0)
    assert weights / forward == pytest.approx(0.5134 / 0.3276, rel=0.1)


def test_rows_gathered_by_index_move_at_three_quarters_of_the_rate_of_others():
    elements = np.array(1e6)
    megatron = {"profile": load_framework("megatron"), "precision": "bf16"}
    plain, gathered = (
        14 * elements,
        routing_traffic_bytes(np.zeros(()), elements, n_experts=8, ep=np.array(8.0), **megatron)[0],
    )
    assert float(gathered / plain) == pytest.approx(0.666 / np.mean([0.5008, 0.5108]), rel=0.02)
