"""dlcalc-search as its users meet it: real space files in, a report, a JSON object, a result and an exit code out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from dlcalc.dlcalc_search import main
from dlcalc.results.manifest import read_manifest
from dlcalc.results.reader import open_result
from dlcalc.results.schema import KNOBS
from dlcalc.search import executors

SMALL = """
study: small
model: llama3-8b
hardware: h100
cluster: {devices: [8, 16]}
recipe: {seq_len: 8192, global_batch: 64, precision: bf16, framework: megatron, token_budget: 1e12}
space: {micro_batch: [1, 2], recompute: [none, full], recompute_layers: all}
"""
HOPELESS = """
study: hopeless
model: llama3-405b
hardware: h100
cluster: {devices: 8}
recipe: {seq_len: 8192, global_batch: 64, precision: bf16, framework: megatron}
space: {micro_batch: 1}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLCALC_HARDWARE_PATH", raising=False)
    Path("small.yaml").write_text(SMALL)
    Path("hopeless.yaml").write_text(HOPELESS)


def search(*arguments, exit_code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == exit_code, done.stderr
    return done


def answer(*arguments, exit_code=0):
    """The --json object, which is all that is on stdout."""
    return json.loads(search(*arguments, "--json", exit_code=exit_code).stdout, parse_constant=pytest.fail)


def timeless(summary):
    """What must be the same however, and however often, a study is searched."""
    return {key: value for key, value in summary.items() if key not in ("seconds", "plans_per_s", "peak_rss_bytes")}


# --- what is printed --------------------------------------------------------------------------------------------


def test_the_report_names_the_best_plan_and_why():
    done = search("small.yaml")

    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for part in ("the best plan of each scenario", "Fastest: ", "MFU (full attention)", "Where the step goes",
                 "Where the memory goes", "Refused: ", "days", "cost", "rows in results/small"):  # fmt: skip
        assert part in done.stdout
    assert done.stdout.count("llama3-8b on 8 h100, bf16") == 2  # in the overview, and above its details


def test_the_json_object_has_what_programs_build_on():
    summary = answer("small.yaml", "--top", 4)

    assert {"study", "n_plans", "n_refused", "seconds", "plans_per_s", "peak_rss_bytes", "result"} <= summary.keys()
    assert summary["study"] == "small"
    assert (
        summary["n_plans"] == summary["n_fit"] + summary["n_refused"] == sum(s["n_plans"] for s in summary["scenarios"])
    )
    assert summary["plans_per_s"] == pytest.approx(summary["n_plans"] / summary["seconds"])
    for scenario, devices in zip(summary["scenarios"], (8, 16), strict=True):
        assert (scenario["model"], scenario["hardware"], scenario["devices"]) == ("llama3-8b", "h100", devices)
        assert scenario["n_plans"] - scenario["n_fit"] <= sum(scenario["refused"].values())
        assert [plan["rank"] for plan in scenario["best"]] == [1, 2, 3, 4]
        for plan in scenario["best"]:
            assert set(KNOBS) <= plan.keys()
            assert plan["tp"] * plan["cp"] * plan["pp"] * plan["dp"] == devices
            assert plan["memory_bytes"] + plan["headroom_bytes"] == pytest.approx(scenario["memory_usable_bytes"])
            assert plan["memory_bytes"] <= scenario["memory_limit_bytes"]
        kept_free = 1 - scenario["memory_limit_bytes"] / scenario["memory_usable_bytes"]
        assert kept_free == pytest.approx(0.05)  # as a study does unless told otherwise
        for plan in scenario["best"]:
            # 64 sequences of 8,192 tokens in a step, over all devices
            assert plan["tokens_per_s_per_device"] == pytest.approx(64 * 8192 / plan["step_time_s"] / devices)
            assert plan["days"] == pytest.approx(1e12 / (64 * 8192) * plan["step_time_s"] / 86_400)
            assert plan["step_time_low_s"] < plan["step_time_s"] < plan["step_time_high_s"]
        best = scenario["best"][0]
        tries = scenario["worth_measuring"]
        assert tries[0]["plan_index"] == best["plan_index"]
        assert 1 <= len(tries) <= min(3, scenario["n_not_told_apart"])
        assert len({tuple(plan[knob] for knob in ("tp", "cp", "pp", "dp", "ep", "etp")) for plan in tries}) == len(
            tries
        )
        assert all(plan["step_time_s"] <= best["step_time_high_s"] for plan in tries)
        assert sum(scenario["breakdown"]["time_s"].values()) == pytest.approx(best["step_time_s"])
        assert sum(scenario["breakdown"]["memory_bytes"].values()) == pytest.approx(best["memory_bytes"])
        near = [plan["step_time_s"] for plan in scenario["within_2_percent"]]
        assert len(near) <= scenario["n_within_2_percent"]
        assert near == sorted(near)
        assert max(near) <= 1.02 * best["step_time_s"]


@pytest.mark.parametrize(
    ("sort", "column", "sign"),
    [("mfu", "mfu", -1), ("step_time", "step_time_s", 1), ("cost", "cost_usd", 1), ("memory", "memory_bytes", 1)],
)
def test_the_best_are_the_best_of_all_that_was_written(sort, column, sign):
    summary = answer("small.yaml", "--sort", sort, "--top", 5)
    frame = pd.read_parquet("results/small")

    for scenario in summary["scenarios"]:
        values = [sign * plan[column] for plan in scenario["best"]]
        assert values == sorted(values)
        rows = frame[frame.devices == scenario["devices"]]
        assert len(rows) == scenario["n_fit"]
        if column in frame:
            assert values == sorted(sign * rows[column])[:5]


@pytest.mark.parametrize("option", ["--resume", "--quiet"])
def test_another_order_of_the_same_plans_needs_no_other_search(option):
    """Whether rows are taken as they are or written again: what is answered is what a new search answers."""
    search("small.yaml")
    before = shard_times()
    search("small.yaml", "--sort", "memory", option)
    after = shard_times()
    assert before.keys() == after.keys()
    assert all((after[name] == before[name]) == (option == "--resume") for name in before)
    resorted = answer("small.yaml", "--sort", "memory", "--resume")
    fresh = answer("small.yaml", "--sort", "memory", "-o", "fresh")
    same = ("best", "within_2_percent", "n_within_2_percent", "refused", "n_fit", "n_not_told_apart", "breakdown")
    for one, other in zip(resorted["scenarios"], fresh["scenarios"], strict=True):
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
    states = [
        [(shard.key, shard.state) for shard in read_manifest(Path(name)).shards] for name in ("results/small", "fresh")
    ]
    assert states[0] == states[1]
    assert "Least memory: " in search("small.yaml", "--sort", "memory", "--resume").stdout

    back = answer("small.yaml", "--resume")
    assert back["sort"] == "mfu"
    times = [plan["step_time_s"] for plan in back["scenarios"][0]["best"]]
    assert times == sorted(pd.read_parquet("fresh").query("devices == 8")["step_time_s"])[: len(times)]


def shard_times():
    return {path.name: path.stat().st_mtime_ns for path in Path("results/small").glob("*.parquet")}


@pytest.mark.parametrize("keep", ["3", "pareto"])
def test_another_order_is_refused_where_plans_were_left_out_and_why_is_said(keep):
    search("small.yaml", "--keep", keep)
    done = search("small.yaml", "--keep", keep, "--sort", "memory", "--resume", exit_code=2)
    assert "sort: step_time there, memory now (what was left out of the rows there may lead now" in done.stderr
    search("small.yaml", "--keep", keep, "--sort", "mfu", "--resume")  # the same order by another name


def test_a_quiet_search_only_writes():
    done = search("small.yaml", "--quiet")
    assert (done.stdout, done.stderr) == ("", "")
    assert open_result("results/small").is_complete


# --- what is written --------------------------------------------------------------------------------------------


def test_a_result_is_what_was_printed():
    summary = answer("small.yaml", "-o", "here/it is")
    result = open_result("here/it is")

    assert summary["result"] == "here/it is"
    assert result.summary() == summary
    for scenario in summary["scenarios"]:
        fastest = result.best(scenario["name"], 1)[0]
        best = scenario["best"][0]
        assert {key: best[key] for key in (*KNOBS, "step_time_s", "memory_bytes")} == {
            key: fastest[key] for key in (*KNOBS, "step_time_s", "memory_bytes")
        }
        assert result.origin(scenario["name"]).devices == scenario["devices"]
    assert open_result("here/it is").manifest.space_text == SMALL


def test_what_is_kept_can_be_chosen():
    n_fit = answer("small.yaml", "--keep", "feasible")["n_fit"]
    rows = {keep: _n_rows(keep) for keep in ("feasible", "all", "pareto", "3")}

    assert rows["feasible"] == n_fit
    assert rows["all"] > n_fit
    assert 0 < rows["pareto"] <= n_fit
    assert rows["3"] == 6  # three per scenario


def _n_rows(keep):
    search("small.yaml", "--keep", keep, "-o", f"kept/{keep}")
    return len(pd.read_parquet(f"kept/{keep}"))


def test_the_front_holds_every_plan_that_nothing_beats():
    search("small.yaml")
    search("small.yaml", "--keep", "pareto", "-o", "front")
    every, kept = pd.read_parquet("results/small"), pd.read_parquet("front")

    for devices in (8, 16):
        plans = every[every.devices == devices].sort_values(["memory_bytes", "step_time_s", "plan_index"])
        unbeaten = plans[plans.step_time_s < plans.step_time_s.cummin().shift(fill_value=float("inf"))]
        assert set(unbeaten.plan_index) <= set(kept[kept.devices == devices].plan_index)


def test_a_dry_run_counts_and_writes_nothing():
    counts = answer("small.yaml", "--dry-run")
    assert "nothing was written" in search("small.yaml", "--dry-run").stdout
    assert sorted(os.listdir()) == ["hopeless.yaml", "small.yaml"]
    assert counts["n_plans"] == answer("small.yaml")["n_plans"]


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_when_nothing_fits_the_answer_says_what_nearly_did():
    done = search("hopeless.yaml", exit_code=3)
    assert "No plan fits" in done.stdout
    assert "Nearest misses" in done.stdout
    assert done.stderr.startswith("error: none of ")
    assert "GiB, limit " in done.stderr

    summary = answer("hopeless.yaml", exit_code=3)
    scenario = summary["scenarios"][0]
    assert scenario["n_fit"] == summary["n_fit"] == 0
    assert scenario["best"] == []
    assert scenario["nearest_misses"][0]["over_bytes"] > 0
    assert len(pd.read_parquet("results/hopeless")) == 0


@pytest.mark.parametrize("keep", ["5", "pareto"])
def test_a_scenario_of_which_nothing_fits_leaves_the_others_their_best(keep):
    Path("mixed.yaml").write_text(SMALL.replace("study: small", "study: mixed").replace("llama3-8b", "llama3-70b")
                                  .replace("[8, 16]", "[8, 32]"))  # fmt: skip
    summary = answer("mixed.yaml", "--keep", keep)

    assert [scenario["n_fit"] > 0 for scenario in summary["scenarios"]] == [False, True]
    assert set(pd.read_parquet("results/mixed")["devices"]) == {32}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("model: llama3-8b", "model: lama3-8b"), "did you mean llama3-8b"),
        (("hardware: h100", "hardwear: h100"), "space.yaml:4: hardwear: no such key; did you mean hardware"),
        (("global_batch: 64", "global_batch: -64"), "space.yaml:6: "),
        (("[1, 2]", "[1, x]"), "space.yaml:7: "),
        (("[none, full]", "[none, ful]"), "space.yaml:7: space.recompute[1]: must be one of none, selective, full, "),
        (("recompute_layers: all", "schedule: 1f2b"), "did you mean 1f1b"),
        (("recompute_layers: all", "split: evn"), "did you mean even"),
        (
            ("recompute_layers: all", "cp_exchange: rng"),
            "space.yaml:7: space.cp_exchange: must be auto or full or ",
        ),
        (("precision: bf16", "precision: nvfp4"), "space.yaml:6: recipe.precision: h100 has no nvfp4"),
        (("hardware: h100", "hardware: h10"), "space.yaml:4: hardware: unknown hardware 'h10'; did you mean h100"),
        (("framework: megatron", "framework: megatro"), "space.yaml:6: recipe.framework: unknown framework 'megatro'"),
        (("recompute_layers: all", "tp: 5"), "space.yaml:7: space: no mesh is possible for llama3-8b on "),
        (
            ("precision: bf16", "profile: {cross_entrpy: fused}"),
            "space.yaml:6: recipe.profile.cross_entrpy: no such setting; did you mean cross_entropy",
        ),
        (("study: small", "study: [small"), "space.yaml:"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_nothing_is_written(change, problem):
    Path("space.yaml").write_text(SMALL.replace(*change))
    done = search("space.yaml", "--json", exit_code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert problem in done.stderr
    assert not Path("results").exists()


def test_a_file_that_is_not_there_is_said_so():
    done = search("nowhere.yaml", exit_code=2)
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("small.yaml", "--list-models"),
        ("small.yaml", "--keep", "some"),
        ("small.yaml", "--keep", "0"),
        ("small.yaml", "--top", "0"),
        ("small.yaml", "--sort", "beauty"),
        ("small.yaml", "--hardware-dir", "nowhere"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments):
    assert "Usage: " in search(*arguments, exit_code=2).stderr


def test_another_study_in_the_same_place_is_refused():
    search("small.yaml", "-o", "r")
    done = search("hopeless.yaml", "-o", "r", exit_code=2)
    assert done.stderr.startswith("error: r: holds the result of another study")
    assert "study: small there, hopeless now" in done.stderr
    assert open_result("r").manifest.study == "small"

    search("hopeless.yaml", "-o", "r", "--overwrite", exit_code=3)
    assert open_result("r").manifest.study == "hopeless"


# --- interrupted and in parallel --------------------------------------------------------------------------------

FEW_PLANS = 2_000
"""In a shard, so that a small study has many."""

STOPPED = """
import os, signal, sys
from dlcalc.dlcalc_search import main
from dlcalc.report.terminal import SearchProgress
from dlcalc.search import executors

executors.SHARD_PLANS = int(sys.argv.pop())
stop = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "interrupt": lambda: os.killpg(0, signal.SIGINT)}
how, calls = stop[sys.argv.pop()], []

def stop_at_the_third(self, done, total, what=""):
    calls.append(done)
    if len(calls) == 3:
        how()

SearchProgress.__call__ = stop_at_the_third
main()
"""


def stopped_search(how, *arguments):
    """A search that a signal stops after two shards, as Ctrl-C in a terminal or the kernel would."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STOPPED), *map(str, arguments), how, str(FEW_PLANS)],
        capture_output=True, text=True, timeout=60, check=False, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_was_finished(monkeypatch, jobs):
    done = stopped_search("interrupt", "small.yaml", "--json", "--jobs", jobs)

    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert (
        done.stderr
        == "interrupted: what was finished is kept; the same command goes on from there, with --resume or without\n"
    )
    assert len(open_result("results/small").shards()) >= 2

    _goes_on(monkeypatch)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_search_goes_on(monkeypatch, jobs):
    done = stopped_search("kill", "small.yaml", "--json", "--jobs", jobs)
    assert done.returncode == -9
    assert not open_result("results/small").is_complete

    _goes_on(monkeypatch)


def _goes_on(monkeypatch):
    """The study is completed by the same command, and nobody can tell."""
    monkeypatch.setattr(executors, "SHARD_PLANS", FEW_PLANS)
    resumed = answer("small.yaml", "--resume")
    undisturbed = answer("small.yaml", "-o", "undisturbed")
    assert timeless(resumed) | {"result": ""} == timeless(undisturbed) | {"result": ""}
    assert _rows("results/small").equals(_rows("undisturbed"))


def _rows(directory):
    return (
        pd.read_parquet(directory).astype({"scenario": str}).sort_values(["scenario", "plan_index"], ignore_index=True)
    )


LOST_WORKER = """
import os, signal
from dlcalc.workflows import sweep as workflows_sweep
from dlcalc.dlcalc_search import main
from dlcalc.search import executors

executors.SHARD_PLANS = 2000
workflows_sweep._blocks = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_lost_worker_is_said_in_one_line():
    done = subprocess.run(
        [sys.executable, "-c", LOST_WORKER, "small.yaml", "--jobs", "2"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: a worker process was lost")
    assert done.stderr.count("\n") == 1


def test_a_complete_study_is_taken_as_it_is(monkeypatch):
    first = answer("small.yaml")
    monkeypatch.setattr(
        "dlcalc.workflows.sweep._blocks", lambda *_, **__: pytest.fail("a finished shard was searched again")
    )
    assert timeless(answer("small.yaml", "--resume")) == timeless(first)


def test_the_answer_does_not_depend_on_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(executors, "SHARD_PLANS", FEW_PLANS)
    one, two = answer("small.yaml", "-o", "r", "--jobs", 1), answer("small.yaml", "-o", "r", "--jobs", 2)
    assert timeless(one) == timeless(two)


@pytest.mark.parametrize("most_rows", [10, 10**4])
def test_a_study_with_too_many_rows_counts_first(monkeypatch, most_rows):
    """Beyond so many plans what is kept depends on how many fit: all of them, or the best and the front."""
    plain = answer("small.yaml", "-o", "all")
    monkeypatch.setattr("dlcalc.workflows.search.MOST_ROWS", min(most_rows, plain["n_plans"] - 1))
    counted = answer("small.yaml", "-o", "some")

    assert {**timeless(counted), "result": "all"} == timeless(plain)
    n_rows = len(pd.read_parquet("some"))
    assert n_rows == plain["n_fit"] if most_rows > plain["n_fit"] else 0 < n_rows <= plain["n_fit"]


# --- lists and help ---------------------------------------------------------------------------------------------


def test_hardware_and_models_are_listed():
    assert "h100" in search("--list-hardware").stdout
    assert {"h100", "gb200_nvl72", "mi300x"} <= {
        row["name"] for row in json.loads(search("--list-hardware", "--json").stdout)
    }
    assert "deepseek-v3" in search("--list-models").stdout
    models = {row["name"]: row for row in json.loads(search("--list-models", "--json").stdout)}
    assert models["llama3-8b"]["parameters_total"] == 8_030_261_248  # Llama 3 8B on Hugging Face


def test_a_folder_of_hardware_joins_the_list():
    Path("mine").mkdir()
    Path("mine/our_h100.yaml").write_text("name: our_h100\nextends: h100\ndescription: ours\n")
    rows = json.loads(search("--list-hardware", "--json", "--hardware-dir", "mine").stdout)
    assert "our_h100" in {row["name"] for row in rows}


def test_help_is_instant_because_nothing_heavy_is_imported():
    code = (
        "import sys; from dlcalc.dlcalc_search import main; main(['--help'], standalone_mode=False); "
        "sys.exit(' '.join(sorted({'numpy', 'pyarrow', 'rich', 'pydantic', 'yaml'} & sys.modules.keys())) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    assert "dlcalc-search search_spaces/llama3_70b_h100.yaml" in done.stdout


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m dlcalc.dlcalc_search --list-models | head -1"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
