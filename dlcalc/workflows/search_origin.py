"""What a result says of the study that it is of, so that it can be gone on with and read without the space file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dlcalc.results.manifest import ScenarioOrigin, StudyOrigin
from dlcalc.search.space import Scenario
from dlcalc.specs.space import SpaceSpec


def origin_of(
    space: SpaceSpec, space_file: Path, scenarios: Sequence[Scenario], *, what: str, n_kept: int, sort: str
) -> StudyOrigin:
    """Its space file's text, what decides which plans are written, and its scenarios."""
    ranges = space.ranges.model_dump(mode="json")
    return StudyOrigin(
        study=space.study,
        space_text=space_file.read_text(encoding="utf-8"),
        settings={"keep": what, "leaders": n_kept, "sort": sort, **_search_settings(space)},
        scenarios=tuple(
            ScenarioOrigin(
                name=scenario.name,
                devices=scenario.devices,
                model=scenario.model,
                hardware=scenario.hardware,
                recipe=scenario.recipe,
                space={
                    "ranges": ranges,
                    "constraints": list(scenario.constraints),
                    "memory_headroom": scenario.memory_headroom,
                    "custom_split": list(scenario.custom_split or ()),
                },
            )
            for scenario in scenarios
        ),
    )


def _search_settings(space: SpaceSpec) -> dict[str, str]:
    """What of the search decides which plans are written; more trials of the same study are the same study."""
    if space.search is None or not space.search.samples_plans:
        return {}
    said = space.search.model_dump(mode="json", exclude={"n_trials", "storage", "batch"}, exclude_defaults=True)
    return {"search": json.dumps({"sampler": space.search.sampler_name, **said}, sort_keys=True)}
