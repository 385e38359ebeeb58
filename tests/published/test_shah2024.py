"""FlashAttention-3, arXiv 2407.08608, figures 5 and 6: attention kernels on the H100, 16,384 tokens, hidden size 2048.

The constants of the H100 come from other measurements (docs/kernels.md: the forward kernel of an inference server);
only the ratio of backward to forward and those between kernels were read from this paper, at 16k tokens. So the ramp
over the sequence, the causal mask, head size and the level of the forward kernel are checked here. The paper times each
kernel alone.
"""

import numpy as np
import pytest

from dlcalc.calculators.kernels import attention_backward_time_s, attention_forward_time_s
from dlcalc.hardware_registry import load_hardware

SEQ = np.array([512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0])


@pytest.mark.parametrize(
    ("backward", "head_dim", "causal", "kernel", "published_tflops", "tolerance"),
    [
        pytest.param(False, 128, True, "flash3", [292, 423, 521, 579, 602, 616], 0.13, id="FA3 causal"),
        pytest.param(False, 128, True, "te_flash", [315, 410, 484, 518, 529, 539], 0.08, id="cuDNN causal"),
        pytest.param(False, 128, True, "flash2", [191, 260, 298, 319, 333, 335], 0.08, id="FA2 causal"),
        pytest.param(False, 128, False, "flash3", [467, 565, 625, 638, 646, 648], 0.06, id="FA3"),
        pytest.param(False, 64, False, "flash3", [333, 392, 460, 476, 496, 497], 0.07, id="FA3 heads of 64"),
        pytest.param(True, 128, False, "flash3", [316, 424, 501, 542, 559, 561], 0.12, id="FA3 backward"),
        pytest.param(True, 64, False, "flash3", [272, 363, 422, 453, 472, 474], 0.10, id="FA3 backward heads of 64"),
        pytest.param(True, 128, False, "te_flash", [305, 408, 465, 499, 518, 516], 0.13, id="cuDNN backward"),
        pytest.param(True, 128, False, "flash2", [214, 260, 291, 310, 318, 322], 0.14, id="FA2 backward"),
    ],
)
def test_attention_rates_match_shah2024(backward, head_dim, causal, kernel, published_tflops, tolerance):
    hardware = load_hardware("h100")
    equation = attention_backward_time_s if backward else attention_forward_time_s
    heads, batch = 2048.0 / head_dim, 16384.0 / SEQ
    seconds = equation(
        SEQ,
        SEQ,
        batch=batch,
        n_heads=heads,
        n_kv_heads=heads,
        qk_head_dim=float(head_dim),
        v_head_dim=float(head_dim),
        causal=causal,
        rates=hardware.calibration.attention["bf16"],
        peak_flops_per_s=hardware.device.peak_flops_per_s("bf16"),
        hbm_bytes_per_s=hardware.device.hbm_bytes_per_s,
        n_sms=hardware.device.n_sms.value,
        kernel=kernel,
    )
    flops = 4 * batch * SEQ**2 * 2048 * (0.5 if causal else 1.0) * (2.5 if backward else 1.0)
    assert flops / seconds / 1e12 == pytest.approx(published_tflops, rel=tolerance)
