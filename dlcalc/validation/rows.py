"""Measured runs as they are written: a CSV with one run per row, its extras parsed."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dlcalc.errors import DlcalcError
from dlcalc.validation import spelling

COLUMNS = (
    "source", "case", "model", "hardware", "gpus", "gpus_per_node", "internode_gbps_per_gpu", "precision", "framework",
    "seq_len", "global_batch", "micro_batch", "tp", "pp", "cp", "vpp", "ep", "etp", "dp", "zero_stage",
    "sequence_parallel", "recompute", "attention", "extras", "step_time_s", "tokens_per_s_per_gpu", "tflops_per_gpu",
    "mfu", "hfu", "memory_gib", "oom", "citation",
)  # fmt: skip

HONOURED = frozenset({
    "schedule", "uneven_pp", "emb_in_pp_split", "loss_in_pp_split", "layers_per_stage", "pp_layout",
    "n_layers_override", "first_dense_layers_override", "mtp", "qk_layernorm", "max_seq",
    "rms_kernel", "kernel", "fused_ce", "te_op_fuser", "compile", "loss_parallel",
    "dp_overlap_grad", "overlap_grad_reduce", "dp_overlap_param", "opt_step_param_gather_overlap",
    "tp_comm_overlap", "async_tp", "p2p_overlap", "a2a_overlap", "cp_comm",
    "grad_dtype", "grad_reduce", "reduce_dtype", "mp_mode", "precision_aware_opt", "optimizer",
    "fp8_recipe", "fp4_recipe", "fp8", "cuda_graph", "moe_capacity_factor", "moe_pad_to_capacity", "moe_dispatcher",
    "megatron_fsdp", "fsdp_shard_group", "reshard_after_forward", "cpu_offload_layers",
    "recompute_layers", "overlap_tp", "offload_optimizer", "split",
    "memory_is", "memory_kind", "scope",
})  # fmt: skip
"""Keys of ``extras`` that change an estimate."""

WITHOUT_EFFECT = frozenset({
    "fp8_dpa", "delay_wgrad", "shared_expert_overlap", "moe_token_drop",
    "force_load_balance", "moe_grouped_gemm", "moe_permute_fusion", "limit_all_gathers", "cpu_offload_weights",
    "fp8_fsdp_allgather",
})  # fmt: skip
"""Keys that describe a run, but that no term of the cost model depends on."""

LARGEST = 10**9
"""More of anything is a typing error."""
MAX_FILE_BYTES = 50_000_000
MAX_RUNS = 100_000


ONE_AT_LEAST = frozenset({"vpp", "cp", "ep", "tp", "pp", "micro_batch"})
"""Degrees of which 0 means that there are none."""


@dataclass(frozen=True)
class MeasuredRun:
    """One row as written, its extras parsed; empty strings are absent."""

    fields: Mapping[str, str]
    extras: Mapping[str, str]
    where: str = ""
    """``file:line``."""

    def text(self, key: str, default: str = "") -> str:
        return self.fields.get(key, "").strip() or default

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number that the estimate rests on."""
        value = self.text(key)
        if not value or spelling.says_nothing(value):
            if default is None:
                raise DlcalcError(f"{key} is missing")
            return default
        if key in ONE_AT_LEAST and default is not None and number_in(value) == 0:
            return default
        if key == "zero_stage" and (stage := re.fullmatch(r"zero[\s_\-]*([0-3])", value.lower())):
            value = stage[1]
        return whole_number(key, value, least=least)

    def number(self, key: str) -> float | None:
        """A number that the estimate rests on, None where it is not given."""
        value = self.text(key)
        if not value or spelling.says_nothing(value):
            return None
        number = number_in(value)
        if number is None:
            raise DlcalcError(f"{key} = {value[:40]!r} is not a number")
        return number

    def measured(self, key: str) -> float | None:
        """A measured figure: positive and finite, or None."""
        number = number_in(self.text(key)) if self.text(key) else None
        return number if number is not None and number > 0 else None

    def flag(self, *keys: str) -> bool | None:
        """The first of these extras that says yes or no."""
        answers = (spelling.switch(self.extras[key]) for key in keys if key in self.extras)
        return next((answer for answer in answers if answer is not None), None)

    @property
    def case(self) -> str:
        return self.text("case")

    @property
    def source(self) -> str:
        return self.text("source", "unnamed")

    @property
    def out_of_memory(self) -> bool | None:
        said = self.text("oom").lower()
        return True if said in ("oom", "out of memory") else spelling.switch(said)

    @property
    def is_part_of_a_step(self) -> bool:
        """Whether what was timed is less than a step (one layer)."""
        return self.extras.get("scope", "") == "one_transformer_layer"

    @property
    def measured_step_time_s(self) -> float | None:
        """As measured, or from the measured token rate."""
        if self.is_part_of_a_step:
            return None
        if step_time_s := self.measured("step_time_s"):
            return step_time_s
        rate = self.measured("tokens_per_s_per_gpu")
        sizes = [self.measured(key) for key in ("seq_len", "global_batch", "gpus")]
        if rate is None or None in sizes:
            return None
        seq_len, batch, devices = (size for size in sizes if size is not None)
        return batch * seq_len / (rate * devices)

    @property
    def measured_memory_gib(self) -> float | None:
        return self.measured("memory_gib")


def whole_number(key: str, value: str, *, least: int = 1) -> int:
    """``value`` as a count; it may be written 1,024 or 4.0."""
    number = number_in(value)
    if number is None:
        raise DlcalcError(f"{key} = {value[:40]!r} is not a number")
    if number != int(number):
        raise DlcalcError(f"{key} = {value!r} is not a whole number")
    if not least <= number <= LARGEST:
        raise DlcalcError(f"{key} = {value[:40]} must lie between {least} and {LARGEST:,}")
    return int(number)


def number_in(value: str) -> float | None:
    """The finite number that ``value`` writes, or None."""
    try:
        number = float(re.sub(r",(?=\d{3}\b)", "", value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# ---- the file


def read_runs(path: Path) -> list[MeasuredRun]:
    """Every row of a CSV of measured runs, in order; only a file that has no column of ours is refused."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise DlcalcError(f"{path}: is larger than {MAX_FILE_BYTES // 10**6} MB")
    longest = csv.field_size_limit(len(content) + 1)
    try:
        text = content.decode("utf-8-sig", errors="replace").lstrip("\r\n")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        return list(_rows(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter), path))
    except csv.Error as error:
        raise DlcalcError(f"{path}: not a CSV of measured runs ({error})") from error
    finally:
        csv.field_size_limit(longest)


def _rows(reader: csv.DictReader[str], path: Path) -> Iterator[MeasuredRun]:
    named = [(name or "").strip().lower() for name in reader.fieldnames or []]
    if not set(named) & set(COLUMNS):
        raise DlcalcError(
            f"{path}:1: not a CSV of measured runs; its first line must name columns ({', '.join(COLUMNS[:5])} ...)"
        )
    reader.fieldnames = named
    for number, row in enumerate(reader):
        if number >= MAX_RUNS:
            raise DlcalcError(f"{path}: has more than {MAX_RUNS:,} runs; split it")
        fields = {key: value or "" for key, value in row.items() if key is not None}
        yield MeasuredRun(fields, parse_extras(fields.get("extras", "")), where=f"{path}:{reader.line_num}")


def parse_extras(text: str) -> dict[str, str]:
    """``k=v;k=v`` as a mapping."""
    pairs = (part.partition("=") for part in text.split(";") if part.strip())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def ignored_extras(runs: Iterable[MeasuredRun]) -> list[str]:
    """Keys of ``extras`` that say nothing about an estimate, sorted."""
    return sorted(
        {key for run in runs for key in run.extras if key and key not in HONOURED and key not in WITHOUT_EFFECT}
    )


def extras_without_effect(runs: Iterable[MeasuredRun]) -> list[str]:
    """Keys of ``extras`` that describe these runs and that no term of the cost model depends on, sorted."""
    return sorted({key for run in runs for key in run.extras if key in WITHOUT_EFFECT})
