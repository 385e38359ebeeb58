"""A comparison as a table for programs: one row per scenario, units in the names of the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from dlcalc.costmodel.plans import KNOBS, NAMES, SWITCHES
from dlcalc.report.compare_facts import Candidate, CompareFacts, MachineInputs, NothingFits, Range, Section

Value = str | int | float | bool | None
Kind = Literal["word", "whole", "switch", "quantity"]
JOULES_PER_KWH = 3.6e6
_ARROW: Mapping[Kind, pa.DataType] = {
    "word": pa.string(),
    "whole": pa.int64(),
    "switch": pa.bool_(),
    "quantity": pa.float64(),
}


@dataclass(frozen=True)
class TableColumn:
    """One column: its name, kind, unit, and what it means."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    of: Callable[[_Row], Value]

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, _ARROW[self.kind], metadata={"unit": self.unit, "description": self.meaning})


@dataclass(frozen=True)
class _Row:
    """What a row is made of."""

    facts: CompareFacts
    scenario: Candidate | NothingFits
    rank: int | None
    is_best: bool
    inputs: MachineInputs | None

    @property
    def best(self) -> Candidate | None:
        return self.scenario if isinstance(self.scenario, Candidate) else None


def _plain(name: str, kind: Literal["word", "whole"], meaning: str, unit: str = "1") -> TableColumn:
    """An attribute of every scenario."""
    return TableColumn(name, kind, unit, meaning, lambda row: getattr(row.scenario, name))


def _of_best(name: str, kind: Kind, unit: str, meaning: str, value: Callable[[Candidate], Value]) -> TableColumn:
    """What only a plan has."""
    return TableColumn(name, kind, unit, meaning, lambda row: value(row.best) if row.best else None)


def _range(
    name: str, unit: str, meaning: str, value: Callable[[Candidate], Range | None], scale: float = 1.0
) -> list[TableColumn]:
    """An estimate and the ends of its interval: three columns, the unit last in each name."""
    stem, _, suffix = name.partition(":")

    def part(end: str) -> Callable[[Candidate], Value]:
        def at(candidate: Candidate) -> Value:
            found = value(candidate)
            return getattr(found, end) * scale if found else None

        return at

    whole = [("", "value", meaning), ("_low", "low", f"lower end of the 80 % interval of {stem}{suffix}"),
             ("_high", "high", f"upper end of the 80 % interval of {stem}{suffix}")]  # fmt: skip
    return [_of_best(f"{stem}{end}{suffix}", "quantity", unit, what, part(at)) for end, at, what in whole]


def _knob(name: str, kind: Kind, meaning: str) -> TableColumn:
    return _of_best(name, kind, "1", meaning, lambda best: best.plan[name])


def _knob_columns() -> list[TableColumn]:
    """Numbers, then words, then switches."""
    numbers = [knob for knob in KNOBS if knob not in NAMES and knob not in SWITCHES]
    kinds: list[tuple[Kind, Sequence[str]]] = [("whole", numbers), ("word", tuple(NAMES)), ("switch", SWITCHES)]
    return [_knob(name, kind, "knob of the plan") for kind, names in kinds for name in names]


TERMS = ("matmul", "attention", "memory_bound", "launch", "tp_comm", "cp_comm", "ep_comm", "pp_comm", "recompute",
         "offload", "imbalance", "bubble", "optimizer", "overhead", "grad_reduce", "param_gather")  # fmt: skip


def _term(name: str) -> TableColumn:
    return _of_best(f"term_{name}_s", "quantity", "s", "term of the step time", lambda best: best.time_s[name])


def _goodput(name: str, column: str, unit: str, meaning: str) -> TableColumn:
    def value(best: Candidate) -> Value:
        return getattr(best.goodput, name) if best.goodput else None

    return _of_best(column, "quantity", unit, meaning, value)


COLUMNS: tuple[TableColumn, ...] = (
    _plain("result", "word", "directory of the study"),
    _plain("scenario", "word", "name of the scenario"),
    _plain("model", "word", "name of the model"),
    _plain("machine", "word", "name of the hardware, with the study's where two studies mean different ones"),
    _plain("devices", "whole", "devices of the scenario", "device"),
    _plain("precision", "word", "precision of the linear layers"),
    TableColumn("fits", "switch", "1", "whether any plan fits", lambda row: row.best is not None),
    TableColumn("rank", "whole", "1", "by the objective, among the scenarios of the model", lambda row: row.rank),
    TableColumn("is_best_of_group", "switch", "1", "best of its --by group", lambda row: row.is_best),
    _of_best("framework", "word", "1", "name of the framework profile", lambda best: best.framework),
    _of_best("seq_len", "whole", "token", "tokens of one sequence", lambda best: best.seq_len),
    _of_best("global_batch", "whole", "sequence", "sequences of one step", lambda best: best.global_batch),
    *_knob_columns(),
    *_range("step_time:_s", "s", "time of one optimizer step", lambda best: best.step_time_s),
    _of_best("mfu", "quantity", "1", "model FLOPs over peak", lambda best: best.mfu),
    _of_best("hfu", "quantity", "1", "hardware FLOPs over peak", lambda best: best.hfu),
    *_range(
        "tokens_per_s_per_device",
        "token/s",
        "tokens trained per second and device",
        lambda best: best.tokens_per_s_per_device,
    ),
    _of_best("memory_bytes", "quantity", "B", "peak memory of the fullest device", lambda best: best.memory_bytes),
    _of_best("headroom_bytes", "quantity", "B", "usable memory less that", lambda best: best.headroom_bytes),
    TableColumn("usd_per_device_hour", "quantity", "USD/h", "price of one device for an hour",
                lambda row: row.inputs.usd_per_device_hour if row.inputs else None),
    TableColumn("watts_per_device", "quantity", "W", "power of one device, with its share of the host where known",
                lambda row: row.inputs.watts_per_device if row.inputs else None),
    TableColumn("host_watts_per_device", "quantity", "W", "that share; empty where the power is the device's alone",
                lambda row: row.inputs.host_watts_per_device if row.inputs else None),
    TableColumn("pue", "quantity", "1", "energy of the site over that of the devices", lambda row: row.facts.pue),
    _of_best("token_budget_tokens", "quantity", "token", "tokens of the whole run", lambda best: best.tokens),
    _goodput("failure_interval_s", "job_failure_interval_s", "s", "mean time between failures of the job"),
    _goodput("checkpoint_interval_s", "checkpoint_interval_s", "s", "best work between checkpoints"),
    _goodput("goodput_fraction", "goodput_fraction", "1", "work over expected wall clock"),
    *_range("days", "day", "to the token budget, expected with failures where they are given", lambda best: best.days),
    *_range("cost:_usd", "USD", "of the devices over those days", lambda best: best.cost_usd),
    *_range("energy:_kwh", "kWh", "of the site over those days", lambda best: best.energy_j, 1.0 / JOULES_PER_KWH),
    *_range("tokens_per_usd", "token/USD", "tokens trained per US dollar", lambda best: best.tokens_per_usd),
    *_range("tokens_per_j", "token/J", "tokens trained per joule", lambda best: best.tokens_per_j),
    _of_best("within_budget", "word", "1", "within, perhaps or beyond", lambda best: best.within_budget),
    _of_best("within_deadline", "word", "1", "within, perhaps or beyond", lambda best: best.within_deadline),
    *map(_term, TERMS),
)  # fmt: skip


def _rows(facts: CompareFacts) -> list[_Row]:
    inputs = {one.machine: one for one in facts.inputs}
    return [row for section in facts.sections for row in _section_rows(facts, section, inputs)]


def _section_rows(facts: CompareFacts, section: Section, inputs: Mapping[str, MachineInputs]) -> list[_Row]:
    best = [id(group.best) for group in section.groups]
    ranked = [
        _Row(facts, one, position + 1, id(one) in best, inputs.get(one.machine))
        for position, one in enumerate(section.candidates)
    ]
    return ranked + [_Row(facts, one, None, False, inputs.get(one.machine)) for one in section.nothing_fits]


def table_rows(facts: CompareFacts) -> list[dict[str, Value]]:
    """One mapping per scenario: those that fit, best first, then those that do not."""
    return [{column.name: column.of(row) for column in COLUMNS} for row in _rows(facts)]


def csv_text(facts: CompareFacts) -> str:
    """The table as CSV; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table_rows(facts))
    return text.getvalue()


def arrow_table(facts: CompareFacts) -> pa.Table:
    """The table for Parquet; every field carries its unit and meaning."""
    return pa.Table.from_pylist(table_rows(facts), schema=pa.schema([column.field for column in COLUMNS]))
