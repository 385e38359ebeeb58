"""What one run computes: every matmul and attention core of a micro-batch."""

from __future__ import annotations

from dlcalc.costmodel.anatomy.kernels import AttentionFacts, MatmulFacts, Shape
from dlcalc.report.run_facts import RunFacts
from dlcalc.report.run_words import whole
from dlcalc.report.sections import Grid, Section
from dlcalc.utils import units


def compute_section(facts: RunFacts) -> Section:
    """Matmuls and attention cores with their shapes, times and rates."""
    return Section(
        "COMPUTE",
        1,
        (
            Grid(
                "Matmuls of one micro-batch",
                (
                    "sublayer",
                    "matmul",
                    "shape",
                    "on a device",
                    "forward",
                    "backward",
                    "FLOPs",
                    "bytes",
                    "FLOP/s",
                    "bound by",
                ),
                tuple(_matmul_row(row) for row in facts.matmuls),
                frozenset({"sublayer", "matmul", "shape", "on a device", "bound by"}),
                "Shapes: tokens x in x out, experts x (tokens x in x out). FLOPs, bytes and rate are of the forward "
                "pass on one device; backward are the gradients of input and weight.",
            ),
            Grid(
                "Attention cores of one micro-batch",
                ("sublayer", "kernel", "heads", "queries x keys", "forward", "backward", "FLOPs", "bytes", "FLOP/s"),
                tuple(_attention_row(row) for row in facts.attention),
                frozenset({"sublayer", "kernel"}),
                "On one device; FLOPs are those the kernel runs.",
            ),
        ),
        "compute",
    )


def _matmul_row(row: MatmulFacts) -> tuple[str, ...]:
    return (
        row.sublayer,
        row.name,
        _shape(row.shape),
        _shape(row.device_shape),
        units.duration(row.forward_s),
        units.duration(row.input_grad_s + row.weight_grad_s),
        units.short_count(row.forward_flops),
        units.size(row.forward_bytes),
        units.short_count(row.forward_flops_per_s),
        row.bound,
    )


def _attention_row(row: AttentionFacts) -> tuple[str, ...]:
    window = f" (window {row.window})" if row.window else ""
    return (
        row.sublayer,
        row.kernel,
        f"{whole(row.sequences)} x {whole(row.heads)} ({whole(row.kv_heads)} KV)",
        f"{whole(row.queries)} x {whole(row.keys)}{window}",
        units.duration(row.forward_s),
        units.duration(row.backward_s),
        units.short_count(row.forward_flops),
        units.size(row.forward_bytes),
        units.short_count(row.forward_flops_per_s),
    )


def _shape(shape: Shape) -> str:
    groups, *rest = shape
    one = "x".join(whole(size) for size in rest)
    return one if groups == 1 else f"{whole(groups)}x({one})"
