"""Memory of model states, Rajbhandari et al. 2020, figure 1 and table 1: mixed-precision Adam, K = 12."""

import pytest

from dlcalc.calculators.memory import gradient_bytes, optimizer_bytes, weights_bytes

GB = 1e9


def states_gb(params: float, *, zero_stage: float, shards: float) -> float:
    sharding = {"zero_stage": zero_stage, "shards": shards}
    return (
        weights_bytes(params, weight_bytes=2.0, **sharding)
        + gradient_bytes(params, grad_bytes=2.0, **sharding)
        + optimizer_bytes(params, master_weight_bytes=4.0, optimizer_state_bytes=8.0, **sharding)
    ) / GB


@pytest.mark.parametrize(
    ("zero_stage", "published_gb", "half_a_digit"),
    [(0, 120.0, 0.5), (1, 31.4, 0.05), (2, 16.6, 0.05), (3, 1.9, 0.05)],
)
def test_figure_1_of_a_model_of_7_5_billion_parameters_on_64_devices(zero_stage, published_gb, half_a_digit):
    assert states_gb(7.5e9, zero_stage=zero_stage, shards=64) == pytest.approx(published_gb, abs=half_a_digit)


@pytest.mark.parametrize(
    ("shards", "params", "published_gb"),
    [  # stages 1, 2, 3; the table's first row, unsharded, is 16 bytes per parameter
        (1, 7.5e9, ("120", "120", "120")),
        (4, 7.5e9, ("52.5", "41.3", "30")),
        (16, 7.5e9, ("35.6", "21.6", "7.5")),
        (64, 7.5e9, ("31.4", "16.6", "1.88")),
        (256, 7.5e9, ("30.4", "15.4", "0.47")),
        (1024, 7.5e9, ("30.1", "15.1", "0.12")),
        (1, 128e9, ("2048", "2048", "2048")),
        (64, 128e9, ("536", "284", "32")),
        (1024, 128e9, ("513", "257", "2")),
        (64, 1e12, ("4187", "2218", "250")),
        (1024, 1e12, ("4011", "2013", "15.6")),
    ],
)
def test_table_1(shards, params, published_gb):
    """As printed: to within half of the last digit, or a whole one where the table cuts digits off instead."""
    for zero_stage, printed in enumerate(published_gb, start=1):
        last_digit = 10.0 ** -len(printed.partition(".")[2])
        estimate = states_gb(params, zero_stage=zero_stage, shards=shards)
        assert estimate == pytest.approx(float(printed), abs=1.0001 * last_digit)
