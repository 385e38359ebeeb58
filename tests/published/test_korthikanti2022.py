"""Memory of Korthikanti et al. 2022, figures 1 and 7: activations with and without sequence parallelism and recompute.

The figures are the paper's own formulas drawn, so they check equations, not reality. Figure 1 was transcribed with
all digits. Figure 7 is a chart: its percentages were read off the bars, up to 0.135 points from what the formulas give,
e.g. 62.04 for selective recomputation of the 1T model, where 13 / 21 is 61.90.
"""

import csv
from pathlib import Path

import pytest

from dlcalc.calculators.activations import attention_activation_bytes, mlp_activation_bytes
from dlcalc.calculators.memory import gradient_bytes, optimizer_bytes, weights_bytes
from dlcalc.calculators.params import attention_weight_params, mlp_weight_params
from dlcalc.calculators.schedule import INTERLEAVED, ONE_F_ONE_B, in_flight_micro_batches_count
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recompute import RECOMPUTE_MODES

GIB = 2.0**30
READ_OFF_THE_CHART = 0.14
FILE = Path(__file__).parents[1] / "data" / "korthikanti2022_analytical.csv"
ROWS = list(csv.DictReader(line for line in FILE.read_text().splitlines() if not line.startswith("#")))
SIZES = {  # table 3: heads, hidden, layers
    "megatron-22b": (64, 6144, 48),
    "gpt3-175b": (96, 12288, 96),
    "turing-530b": (128, 20480, 105),
    "megatron-1t": (160, 25600, 128),
}
MEGATRON_2022 = FrameworkProfile(
    name="megatron_2022",
    description="Megatron-LM of the paper: fused masked softmax, dropout, fp32 gradients",
    attention="megatron_fused",
    fused_norm=True,
    fused_activation=True,
    fused_residual=True,
    fused_rope=True,
    cross_entropy="parallel",
    dropout=True,
    grad_bytes=4,
    grad_reduce_bytes=4,
    zero_stages=(0,),
    overlap_grad=False,
    overlap_param=False,
    overlap_tp=False,
    host_launch_us=5.0,
)


def gpt(name: str) -> ModelSpec:
    heads, hidden, layers = SIZES[name]
    return ModelSpec(
        name=name,
        n_layers=layers,
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=hidden // heads,
        ffn_hidden_size=4 * hidden,
        vocab_size=51200,
        gated_mlp=False,
        norm="layernorm",
        linear_bias=True,
        learned_positions=True,
    )


def layer_bytes(row: dict[str, str], *, sequence_parallel: float, recompute: str) -> float:
    model = gpt(row["model"])
    plan = {
        "tokens": float(row["micro_batch"]) * float(row["seq_len"]),
        "tp": float(row["tp"]),
        "sequence_parallel": sequence_parallel,
        "recompute": RECOMPUTE_MODES.index(recompute),
    }
    attention = attention_activation_bytes(model, MEGATRON_2022, seq_k_tokens=float(row["seq_len"]), **plan)
    return float(attention.total_bytes + mlp_activation_bytes(model, MEGATRON_2022, **plan).total_bytes)


def activation_bytes(row: dict[str, str]) -> float:
    """Of the first stage, which has the most micro-batches in flight."""
    model, pp, vpp = gpt(row["model"]), float(row["pp"]), float(row["vpp"])
    in_flight = in_flight_micro_batches_count(
        INTERLEAVED if vpp > 1 else ONE_F_ONE_B, pp=pp, vpp=vpp, n_micro_batches=4 * pp, stage=0.0
    )
    layer = layer_bytes(row, sequence_parallel=float(row["sequence_parallel"] == "true"), recompute=row["recompute"])
    return layer * model.n_layers / pp * float(in_flight)


def state_bytes(row: dict[str, str]) -> float:
    """Of the layers' matrices; the figure leaves out embeddings, biases and norms."""
    model, tp, pp = gpt(row["model"]), float(row["tp"]), float(row["pp"])
    layer = attention_weight_params(model, tp=tp) + mlp_weight_params(model, width=model.ffn_hidden_size, tp=tp)
    params = layer * model.n_layers / pp
    return float(
        weights_bytes(params, weight_bytes=2.0)
        + gradient_bytes(params, grad_bytes=4.0)
        + optimizer_bytes(params, master_weight_bytes=4.0, optimizer_state_bytes=8.0)
    )


def named(row: dict[str, str]) -> str:
    return f"{row['model']}-{row['recompute']}{'-sp' * (row['sequence_parallel'] == 'true')}"


@pytest.mark.parametrize("row", [row for row in ROWS if row["figure"] == "1"], ids=named)
def test_figure_1(row):
    states, activations = state_bytes(row) / GIB, activation_bytes(row) / GIB
    assert states == pytest.approx(float(row["par_opt_gib"]), abs=1e-9)
    assert activations == pytest.approx(float(row["act_gib"]), abs=1e-9)
    assert states + activations == pytest.approx(float(row["total_gib"]), abs=0.501e-4)  # four decimals


@pytest.mark.parametrize("row", [row for row in ROWS if row["figure"] == "7"], ids=named)
def test_figure_7(row):
    baseline = layer_bytes(row, sequence_parallel=0.0, recompute="none")
    layer = layer_bytes(row, sequence_parallel=float(row["sequence_parallel"] == "true"), recompute=row["recompute"])
    percent = 100.0 * layer / baseline
    assert percent == pytest.approx(float(row["act_percent_of_tp_baseline"]), abs=READ_OFF_THE_CHART)


def test_all_rows_are_tested():
    assert len(ROWS) == 28
    assert {row["figure"] for row in ROWS} == {"1", "7"}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(
    ("tp", "sequence_parallel", "recompute", "per_sbh", "per_score"),
    [
        pytest.param(1, 0, "none", 34, 5, id="equation-1"),
        pytest.param(8, 0, "none", 10 + 24 / 8, 5 / 8, id="equation-2"),
        pytest.param(8, 1, "none", 34 / 8, 5 / 8, id="equation-4"),
        pytest.param(8, 0, "selective", 10 + 24 / 8, 0, id="table-2-selective"),
        pytest.param(8, 1, "selective", 34 / 8, 0, id="equation-6"),
        pytest.param(8, 0, "full", 2, 0, id="table-2-full"),
    ],
)
def test_table_2(name, tp, sequence_parallel, recompute, per_sbh, per_score):
    """Bytes per layer as multiples of s b h, and of a s^2 b."""
    row = {"model": name, "seq_len": "2048", "micro_batch": "4", "tp": str(tp)}
    heads, hidden, _ = SIZES[name]
    tokens = 4 * 2048
    expected = tokens * hidden * per_sbh + heads * 2048 * tokens * per_score
    layer = layer_bytes(row, sequence_parallel=sequence_parallel, recompute=recompute)
    assert layer == pytest.approx(expected, rel=1e-12)
