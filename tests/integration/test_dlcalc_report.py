"""dlcalc-report on results that were really searched: every number against the rows, and what bad input gets."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dlcalc import training_3d
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS
from dlcalc.dlcalc_report import main
from dlcalc.report.plan_words import plan_words
from dlcalc.results.reader import open_result
from dlcalc.workflows.sensitivity import FACTOR, _changes, scenario_of, sensitivity_of
from tests.studies import FEW, evil_model, searched

MESH = ["tp", "cp", "pp", "dp", "ep", "etp"]
TIGHT = "{cp: 1, micro_batch: [1, 2, 4], zero_stage: [0, 1]}"


def report(*arguments, exit_code=0, **environment):
    done = CliRunner().invoke(main, [str(one) for one in arguments], env=environment, catch_exceptions=False)
    assert done.exit_code == exit_code, done.output[-2000:]
    return done


def document(*arguments, **environment):
    return json.loads(report(*arguments, "--json", **environment).stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two machines, two sizes."""
    return searched(tmp_path_factory.mktemp("studies"), hardware="[h100, a100_80gb]", devices="[16, 32]")


@pytest.fixture(scope="module")
def found(small):
    return document(small)


@pytest.fixture(scope="module")
def rows(small):
    """The rows of the first scenario, best first."""
    every = pd.read_parquet(small)
    every = every[every["scenario"] == open_result(small).scenarios[0]]
    return every.sort_values(["step_time_s", "plan_index"]).reset_index(drop=True)


# --- every number against the rows -----------------------------------------------------------------------------------


def test_the_plan_is_the_best_row(found, rows):
    plan, best = found["plan"], rows.iloc[0]
    assert plan["rank"] == 1
    for name in ("step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "hfu", "memory_bytes", "headroom_bytes"):
        assert plan[name] == best[name]
    assert all(plan["plan"][knob] == best[knob] for knob in KNOBS)
    steps = 1.0e11 / (128 * 4096)
    assert plan["days"] == pytest.approx(steps * best["step_time_s"] / 86400)
    assert plan["cost_usd"] == pytest.approx(steps * best["step_time_s"] / 3600 * 16 * 10.0)  # h100: $10 an hour


def test_terms_add_up_to_the_step_and_the_memory(found):
    assert len(found["top"]) >= 5
    for plan in found["top"]:
        assert sum(plan["time_s"].values()) == pytest.approx(plan["step_time_s"], rel=1e-9)
        assert sum(plan["memory_terms_bytes"].values()) == pytest.approx(plan["memory_bytes"], rel=1e-9)


def test_top_plans_are_the_best_and_the_best_of_further_meshes(found, rows):
    ranks = [plan["rank"] for plan in found["top"]]
    assert ranks[:5] == [1, 2, 3, 4, 5]
    for plan in found["top"]:
        assert plan["step_time_s"] == rows["step_time_s"][plan["rank"] - 1]
    first_of_mesh = rows.drop_duplicates(MESH).index + 1
    shown = {tuple(rows[MESH].iloc[rank - 1]) for rank in range(1, 6)}
    others = [rank for rank in first_of_mesh if tuple(rows[MESH].iloc[rank - 1]) not in shown][:5]
    assert ranks[5:] == others


def test_the_front_is_exact(found, rows):
    by_memory = rows.sort_values(["memory_bytes", "step_time_s", "plan_index"])
    faster = by_memory["step_time_s"] < by_memory["step_time_s"].cummin().shift(fill_value=np.inf)
    front = by_memory[faster]
    shown = found["cloud"]["front"]
    assert [point["memory_bytes"] for point in shown] == front["memory_bytes"].tolist()
    assert [point["step_time_s"] for point in shown] == front["step_time_s"].tolist()


def test_the_heat_map_is_the_best_of_all_rows(found, rows):
    best = rows.groupby(["tp", "pp"])["mfu"].max()
    count = rows.groupby(["tp", "pp"]).size()
    assert {(cell["tp"], cell["pp"]): cell["best"]["mfu"] for cell in found["heat"]} == best.to_dict()
    assert {(cell["tp"], cell["pp"]): cell["n_rows"] for cell in found["heat"]} == count.to_dict()


def test_the_best_of_each_mesh(found, rows):
    best = rows.groupby(MESH)["step_time_s"].min().sort_values()
    assert found["n_meshes"] == len(best)
    assert [point["step_time_s"] for point in found["mesh_best"]] == best.tolist()


def test_how_many_are_as_good(found, rows):
    best = rows["step_time_s"].iloc[0]
    assert found["n_within_2_percent"] == (rows["step_time_s"] <= 1.02 * best).sum()
    wide = rows["step_time_high_s"].iloc[0] / best - 1
    assert found["n_not_told_apart"] == (rows["step_time_s"] <= best * (1 + wide / 2)).sum()


def test_refusals_are_those_of_the_search(small, found):
    first = open_result(small).summary()["scenarios"][0]
    assert found["refusals"]["reasons"] == {reason: n for reason, n in first["refused"].items() if n}
    assert found["refusals"]["n_plans"] == first["n_plans"]
    assert found["scenario"]["n_fit"] == first["n_fit"]


def test_all_scenarios_with_their_best(small, found):
    summary = open_result(small).summary()
    for one, said in zip(found["scenarios"], summary["scenarios"], strict=True):
        assert (one["name"], one["hardware"], one["devices"]) == (said["name"], said["hardware"], said["devices"])
        assert one["step_time_s"] == pytest.approx(said["best"][0]["step_time_s"])
        assert one["tokens_per_s"] == pytest.approx(128 * 4096 / said["best"][0]["step_time_s"])
        assert one["cost_usd"] == pytest.approx(said["best"][0]["cost_usd"])


def test_many_rows_are_counted_in_cells(tmp_path):
    result = searched(tmp_path, devices="32", space="{micro_batch: [1, 2, 4, 8]}")
    found = document(result, "--no-sensitivity")
    rows = pd.read_parquet(result)
    cloud = found["cloud"]
    assert not cloud["points"]
    counts = np.array(cloud["density"]["counts"])
    assert counts.sum() + cloud["n_beyond"] == len(rows) == cloud["n_rows"]
    assert cloud["n_beyond"] == 0
    row = (rows["mfu"] / cloud["density"]["mfu_step"] * (1 - 1e-9)).astype(int)
    column = (rows["memory_bytes"] / cloud["density"]["memory_step_bytes"]).astype(int)
    expected = np.zeros_like(counts)
    np.add.at(expected, (row, column), 1)
    assert (np.abs(expected - counts).sum()) <= 4  # a row on the edge of a cell


def test_few_rows_are_drawn_one_by_one(tmp_path):
    result = searched(tmp_path, space="{tp: [1, 2], pp: [1, 2], cp: 1, micro_batch: 1, recompute: none, zero_stage: 1}")
    found = document(result, "--no-sensitivity")
    assert found["sensitivity"] is None
    assert len(found["cloud"]["points"]) == found["cloud"]["n_rows"] == len(pd.read_parquet(result))
    assert found["cloud"]["density"] is None


def test_rows_that_do_not_fit_are_not_among_the_best(tmp_path):
    """--keep all also writes what memory refuses, some of it faster than anything that fits."""
    result = searched(tmp_path, "every", devices="16", space=TIGHT, keep="all")
    kept = searched(tmp_path, "fitting", devices="16", space=TIGHT)
    every, fitting = document(result), document(kept)
    assert every["cloud"]["n_rows"] > every["cloud"]["n_fit"] == fitting["cloud"]["n_fit"]
    for key in ("plan", "top", "heat", "mesh_best", "n_within_2_percent"):
        assert every[key] == fitting[key]
    assert every["cloud"]["front"] == fitting["cloud"]["front"]


@pytest.mark.parametrize("keep", [7, "pareto"])
def test_a_result_that_keeps_few_says_so(tmp_path, keep):
    result = searched(tmp_path, space="{}", keep=keep)
    found = document(result, "--no-sensitivity")
    assert found["plan"]["step_time_s"] == document(searched(tmp_path, "all", space="{}"))["plan"]["step_time_s"]
    assert found["cloud"]["n_fit"] < found["scenario"]["n_fit"]
    assert any("the search kept" in note for note in found["notes"])


# --- what more hardware would give -----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(5), ids=["hbm", "hbm-rate", "matmul", "node", "fabric"])
def test_the_best_plan_with_more_is_the_best_of_all_rows_estimated_so(small, rows, position):
    """Row by row with the changed hardware, where the report searches blocks."""
    origin = open_result(small).origin(open_result(small).scenarios[0])
    said = sensitivity_of(origin, rows.iloc[0].to_dict()).rows[position]
    change = list(_changes(origin))[position]
    hardware = change.change(origin.hardware)
    scenario = scenario_of(origin)
    every = estimate(
        origin.model, hardware, origin.recipe, scenario.rows(np.arange(scenario.n_plans)),
        memory_headroom=scenario.memory_headroom,
    )  # fmt: skip
    fits = np.broadcast_to(every.fits, scenario.n_plans)
    step = np.where(fits, every.step_time_s, np.inf)
    assert said.n_fit == fits.sum()
    assert said.best.step_time_s == pytest.approx(step.min(), rel=1e-12)
    assert said.after == pytest.approx(FACTOR * said.before)
    own = int(rows["plan_index"].iloc[0])
    assert said.same_plan_step_s == pytest.approx(float(np.broadcast_to(every.step_time_s, scenario.n_plans)[own]))
    assert said.best.step_time_s <= said.same_plan_step_s * (1 + 1e-12)


def test_more_memory_lets_another_plan_win(tmp_path):
    found = document(searched(tmp_path, model="llama3-70b", devices="32", space="{cp: 1, recompute: none}"))
    memory = found["sensitivity"]["rows"][0]
    assert memory["what"] == "HBM size"
    assert memory["n_fit"] > found["scenario"]["n_fit"]
    assert memory["same_plan_step_s"] == pytest.approx(found["plan"]["step_time_s"])
    assert memory["best"]["step_time_s"] < 0.999 * found["plan"]["step_time_s"]
    assert not memory["is_same_plan"]


def test_a_space_too_large_to_search_again_is_said_to_be(small, rows):
    origin = open_result(small).origin(open_result(small).scenarios[0])
    found = sensitivity_of(origin, rows.iloc[0].to_dict(), most_plans=10)
    assert not found.is_searched
    assert all(row.best is None and row.n_fit is None for row in found.rows)
    assert found.rows[2].same_plan_step_s < rows["step_time_s"].iloc[0]


# --- rank, scenario, placement ---------------------------------------------------------------------------------------


def test_a_plan_of_another_rank(small, rows):
    found = document(small, "--rank", 40, "--no-sensitivity")
    assert found["plan"]["rank"] == 40
    assert found["plan"]["step_time_s"] == rows["step_time_s"][39]
    assert [plan["rank"] for plan in found["top"]].count(40) == 1
    why = found["why"]
    assert not why["is_runner_up"]
    assert why["other"]["rank"] == 1
    difference = sum(term["plan_s"] - term["other_s"] for term in why["terms"])
    assert difference == pytest.approx(rows["step_time_s"][39] - rows["step_time_s"][0], rel=1e-6)


def test_the_best_plan_is_set_against_the_best_of_another_mesh(found, rows):
    other = found["why"]["other"]
    assert found["why"]["is_runner_up"]
    own = tuple(rows[MESH].iloc[0])
    rival = next(row for _, row in rows.iterrows() if tuple(row[MESH]) != own)
    assert other["step_time_s"] == rival["step_time_s"]
    text = report("--no-sensitivity", found["provenance"]["result"]).stdout
    assert "Why: the best plan of another mesh runs" in " ".join(text.split())


def test_it_agrees_with_3dtrn(small):
    for rank, scenario in ((1, "32 h100"), (3, "16 a100")):
        options = [str(small), "--rank", str(rank), "--scenario", scenario, "--json"]
        theirs = json.loads(CliRunner().invoke(training_3d.main, options).stdout)
        ours = document(*options[:-1], "--no-sensitivity")
        assert ours["plan"]["step_time_s"] == pytest.approx(theirs["results"]["iteration_s"], rel=1e-9)
        assert ours["plan"]["mfu"] == pytest.approx(theirs["results"]["mfu"], rel=1e-9)
        assert scenario in ours["scenario"]["name"]


def test_a_study_ranked_by_memory(tmp_path):
    """By memory, of equals by step time: as the search says, 3dtrn, and the report."""
    result = searched(tmp_path, model="qwen3-30b-a3b", hardware="h200", devices="8", space="{etp: full}", sort="memory")
    found = document(result)
    best = open_result(result).summary()["scenarios"][0]["best"]
    assert [plan["plan"] for plan in found["top"][:5]] == [{knob: row[knob] for knob in KNOBS} for row in best[:5]]
    assert "plans are ranked by memory, as the search was told to" in found["notes"]
    assert "Best plan by memory: " in report(result, "--no-sensitivity").stdout
    assert found["sensitivity"]["plan"]["step_time_s"] < found["plan"]["step_time_s"]
    options = [str(result), "--rank", "2", "--json"]
    theirs = json.loads(CliRunner().invoke(training_3d.main, options, catch_exceptions=False).stdout)
    assert theirs["memory"]["total_bytes"] == pytest.approx(best[1]["memory_bytes"])
    assert theirs["results"]["iteration_s"] == pytest.approx(best[1]["step_time_s"])


def test_a_placed_study_is_told_as_placed(tmp_path):
    fabric = tmp_path / "fabric.yaml"
    racks = "".join(f"      - {{switch: rack{i}, nodes: 'r{i}n[0-1]'}}\n" for i in range(4))
    fabric.write_text(
        "tier_gbit_per_s_per_node: [3200, 400]\nswitches:\n  - switch: spine\n    switches:\n" + racks, encoding="utf-8"
    )
    result = searched(tmp_path, devices="64", space=FEW, topology=str(fabric))
    found = document(result)
    placed = open_result(result).placed_plans()
    assert found["placed"].endswith("fabric.yaml")
    assert [plan["step_time_s"] for plan in found["top"][:5]] == [row["placed_step_time_s"] for row in placed[:5]]
    assert [plan["rank"] for plan in found["top"][:5]] == [1, 2, 3, 4, 5]
    for plan in found["top"]:
        assert sum(plan["time_s"].values()) == pytest.approx(plan["step_time_s"], rel=1e-9)
    text = report(result).stdout
    assert "Best plan as placed: " in text
    assert "Placement apart" in text


# --- nothing fits ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory):
    return searched(tmp_path_factory.mktemp("studies"), "hopeless", model="llama3-70b", devices="8")


def test_where_nothing_fits_it_says_why_and_still_makes_the_page(hopeless, tmp_path):
    pytest.importorskip("plotly", reason="the page is drawn with plotly")
    done = report(hopeless, "-o", tmp_path / "report.html", exit_code=3)
    assert re.search(r"^error: none of [\d,]+ plans of llama3-70b on 8 h100, bf16 fits: ", done.stderr, re.MULTILINE)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No plan fits." in page
    assert "Nearest misses" in page
    found = json.loads(report(hopeless, "--json", exit_code=3).stdout)
    assert found["plan"] is None
    assert found["refusals"]["nearest_misses"]
    assert "No plan fits." in report(hopeless, exit_code=3).stdout
    assert "has no rows that fit" in report(hopeless, "--rank", 2, exit_code=2).stderr


def test_a_scenario_in_which_nothing_fits_beside_others(tmp_path):
    result = searched(tmp_path, model="llama3-70b", devices="[8, 64]")
    found = document(result, "--no-sensitivity")  # the first with a plan, unless told
    assert "on 64" in found["scenario"]["name"]
    assert [one["plan"] is None for one in found["scenarios"]] == [True, False]
    assert "no plan fits" in report(result, "--no-sensitivity").stdout
    assert "No plan fits." in report(result, "--scenario", "on 8 ", exit_code=3).stdout


# --- bad input -------------------------------------------------------------------------------------------------------


def test_what_bad_input_gets(small, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    said = [
        (("nowhere",), "nowhere: does not exist"),
        ((tmp_path / "file",), "file: not a directory"),
        ((tmp_path / "foreign",), "foreign"),
        ((small, "--rank", 10**6), "--rank 1000000: llama3-8b on 16 h100, bf16 has "),
        ((small, "--scenario", "nobody"), "unknown scenario 'nobody'"),
        ((small, "-o", tmp_path / "no" / "page.html"), "cannot be written: no directory"),
        ((small, "-o", tmp_path), "it is a directory"),
    ]
    for arguments, text in said:
        done = report(*arguments, exit_code=2)
        assert done.stderr.startswith("error: ")
        assert text in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not done.stdout


def test_a_damaged_file_is_named(small, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(small, damaged)
    next(damaged.glob("*.parquet")).write_bytes(b"nonsense")
    assert "damaged" in report(damaged, exit_code=2).stderr


def test_an_unfinished_search_is_told_as_far_as_it_went(small, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(small, part)
    manifest = json.loads((part / "_manifest.json").read_text())
    (part / "_summary.json").unlink()
    manifest["status"] = "running"
    manifest["shards"] = manifest["shards"][:2]
    (part / "_manifest.json").write_text(json.dumps(manifest))
    found = document(part, "--no-sensitivity")
    assert "the search was not finished; this is what it has found so far" in found["notes"]
    assert found["provenance"]["status"] == "running"
    assert 0 < len(found["scenarios"]) < 4
    manifest["shards"] = []
    (part / "_manifest.json").write_text(json.dumps(manifest))
    assert "nothing of scenario" in report(part, exit_code=2).stderr


def test_without_plotly_it_says_what_to_install_and_does_no_work(monkeypatch, small, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = report(small, "-o", tmp_path / "page.html", exit_code=2)
    assert "-o draws with plotly, which is not installed; run: pip install 'dlcalc[report]'" in done.stderr
    assert report(small, "--no-sensitivity").stdout  # the terminal needs none


# --- what is printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_lines_fit_the_terminal(small, columns):
    text = report(small, "--no-sensitivity", COLUMNS=str(columns)).stdout
    assert max(map(len, text.splitlines())) <= columns


def test_colour_is_for_terminals_that_want_it(small):
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[" in report(small, "--no-sensitivity", **forced).stdout
    assert not re.search(r"\x1b\[[\d;]*(3[0-7]|38|9[0-7])m", report(small, NO_COLOR="1", **forced).stdout)
    assert "\x1b" not in report(small, "--no-sensitivity").stdout


def test_the_essentials_are_printed(small, found, rows):
    text = " ".join(report(small).stdout.split())
    assert f"Best plan: {plan_words(found['plan']['plan'])}" in text
    assert f"{100 * rows['mfu'].iloc[0]:.1f} %" in text
    for words in (
        "80 % sure",
        "tokens in",
        "at $10.00 per device-hour",
        "What 10 % more would give",
        "Scaling",
        "Refused",
    ):
        assert words in text
    assert "SHA-256" in text


def test_names_from_files_are_text(tmp_path):
    """A model may call itself anything."""
    pytest.importorskip("plotly", reason="the page is drawn with plotly")
    result = searched(tmp_path, model=evil_model(tmp_path), devices="[8, 16]")
    page = tmp_path / "page.html"
    report(result, "-o", page)
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert" in text
