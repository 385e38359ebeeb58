"""What made a study, kept in full beside the manifest, and how two studies differ.

The manifest has hashes of the resolved models, machines, recipes and spaces; ``_inputs.json`` has what they stand for,
each once however many scenarios share it, so that a study that is refused can be told from the one that is there.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dlcalc.errors import ResultError
from dlcalc.results.files import INPUTS_NAME, read_json, write_text
from dlcalc.results.manifest import Manifest, ScenarioDigest, Settings, StudyOrigin
from dlcalc.results.storage import Location
from dlcalc.utils.jsontext import to_json

_MAX_DIFFERENCES = 12
_LONGEST_VALUE = 60

Inputs = Mapping[str, Any]
"""Parts of scenarios by their hash."""


def inputs_of(origin: StudyOrigin) -> Inputs:
    """Everything that the hashes of a study's manifest stand for."""
    found: dict[str, Any] = {}
    for scenario in origin.scenarios:
        digest, texts = scenario.digest(), scenario.parts()
        found |= {
            digest.parts[part]: json.loads(text) for part, text in texts.items() if digest.parts[part] not in found
        }
    return found


def write_inputs(directory: Location, inputs: Inputs) -> None:
    """Keep what the hashes stand for."""
    write_text(directory / INPUTS_NAME, to_json(inputs) + "\n", durable=True)


def read_inputs(directory: Location) -> Inputs:
    """What the hashes stand for, as far as it is there: it only makes differences plainer."""
    try:
        document = read_json(directory / INPUTS_NAME)
    except ResultError:
        return {}
    return document if isinstance(document, dict) else {}


def differences(
    there: Manifest, now: Manifest, inputs_there: Inputs, inputs_now: Inputs, *, any_order: bool = False
) -> list[str]:
    """Why two manifests are not of the same study, one line per difference; empty when they are.

    With ``any_order`` what the plans are sorted by may differ.
    """
    lines = [
        f"{what}: {old} there, {new} now"
        for what, old, new in (
            ("study", there.study, now.study),
            ("dlcalc", there.dlcalc_version, now.dlcalc_version),
            ("schema", there.schema_version, now.schema_version),
        )
        if old != new
    ]
    lines += _setting_differences(there.settings, {**now.settings, **_sort(there)} if any_order else now.settings)
    scenarios = _scenario_differences(there.scenarios, now.scenarios)
    if scenarios and there.space_sha256 != now.space_sha256:
        lines += _text_differences(there.space_text, now.space_text)
    return lines + scenarios + _input_differences(there.scenarios, now.scenarios, inputs_there, inputs_now)


def _sort(there: Manifest) -> Settings:
    return {"sort": there.settings["sort"]} if "sort" in there.settings else {}


def _setting_differences(ours: Settings, theirs: Settings) -> list[str]:
    keys = sorted(ours.keys() | theirs.keys())
    why = {"sort": " (what was left out of the rows there may lead now; keep: feasible would have kept it)"}
    return [
        f"{key}: {ours.get(key)} there, {theirs.get(key)} now{why.get(key, '')}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _scenario_differences(ours: tuple[ScenarioDigest, ...], theirs: tuple[ScenarioDigest, ...]) -> list[str]:
    """Scenarios by position, because shards name them by position."""
    if [scenario.name for scenario in ours] != [scenario.name for scenario in theirs]:
        return [f"scenarios: {_names(ours)} there, {_names(theirs)} now"]
    lines = []
    for old, new in zip(ours, theirs, strict=True):
        changed = [part for part in old.parts if old.parts[part] != new.parts.get(part)]
        changed += [] if old.devices == new.devices else ["devices"]
        if changed:
            lines.append(f"scenario {new.name}: different {', '.join(changed)}")
    return lines


def _names(scenarios: tuple[ScenarioDigest, ...]) -> str:
    shown = ", ".join(scenario.name for scenario in scenarios[:4])
    return shown if len(scenarios) <= 4 else f"{shown} and {len(scenarios) - 4} more"


def _text_differences(ours: str, theirs: str) -> list[str]:
    """Changed lines of the space file, ``-`` there and ``+`` now."""
    lines = difflib.unified_diff(ours.splitlines(), theirs.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    left_out = len(changed) - _MAX_DIFFERENCES
    return changed[:_MAX_DIFFERENCES] + ([f"... and {left_out} more lines"] if left_out > 0 else [])


def _input_differences(
    ours: tuple[ScenarioDigest, ...], theirs: tuple[ScenarioDigest, ...], old: Inputs, new: Inputs
) -> list[str]:
    """Fields that differ, once for each pair of parts however many scenarios have it."""
    pairs = {
        (part, one.parts.get(part, ""), other.parts[part]): None
        for one, other in zip(ours, theirs, strict=False)
        for part in other.parts
        if one.name == other.name and one.parts.get(part) != other.parts[part]
    }
    lines: list[str] = []
    for part, before, after in pairs:
        if before in old and after in new:
            lines += [f"{part}: {line}" for line in _fields(old[before], new[after], "")]
    left_out = len(lines) - _MAX_DIFFERENCES
    return lines[:_MAX_DIFFERENCES] + ([f"... and {left_out} more fields"] if left_out > 0 else [])


def _fields(old: Any, new: Any, where: str) -> Iterator[str]:  # noqa: ANN401 - JSON is anything
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _fields(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield f"{where}: {_value(old)} there, {_value(new)} now"


def _value(value: Any) -> str:  # noqa: ANN401
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
