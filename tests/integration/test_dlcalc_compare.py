"""dlcalc-compare as its users meet it: results of real searches in; a report, JSON, tables and an exit code out."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dlcalc import dlcalc_search
from dlcalc.dlcalc_compare import main
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.report.compare_rows import COLUMNS
from dlcalc.results.reader import open_result
from dlcalc.workflows.result_rows import row_of

SHOOTOUT = """
study: shootout
model: llama3-8b
hardware: [h100, b200, mi300x]
cluster: {devices: [8, 32, 128]}
recipe: {seq_len: 8192, global_batch: 256, framework: megatron, token_budget: 1e12}
space: {micro_batch: 1, recompute: [none, full], recompute_layers: all}
keep: {top: 20}
"""
PRECISIONS = """
study: precisions
model: [llama3-8b, llama3-70b]
hardware: [h100, h20]
cluster: {devices: [16, 32]}
recipe: {seq_len: 8192, global_batch: 128, precision: [bf16, fp8], framework: megatron}
space: {micro_batch: 1, recompute: [none, full], recompute_layers: all}
keep: pareto
"""
OURS = """
name: h100
description: H100 nodes behind our own switches
extends: h100
fabric:
  nic_gbit_per_s_per_device: {value: 100, source: "ib_write_bw between two nodes"}
"""
SLOW_FABRIC = SHOOTOUT.replace("study: shootout", "study: slow").replace("[h100, b200, mi300x]", "ours/h100.yaml")
ALONE = SHOOTOUT.replace("study: shootout", "study: alone").replace("[h100, b200, mi300x]", "h100")
HOPELESS = SHOOTOUT.replace("study: shootout", "study: hopeless").replace("llama3-8b", "llama3-405b")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with the results of small studies."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "ours").mkdir()
    (folder / "ours" / "h100.yaml").write_text(OURS)
    for name, text in {"shootout": SHOOTOUT, "precisions": PRECISIONS, "slow": SLOW_FABRIC}.items():
        search(folder, name, text)
    search(folder, "alone", ALONE.replace("[8, 32, 128]", "8"))
    search(folder, "hopeless", HOPELESS.replace("[8, 32, 128]", "[8, 16]"), exit_code=3)
    return folder


def search(folder, name, text, *arguments, exit_code=0):
    (folder / f"{name}.yaml").write_text(text)
    out = ["-o", str(folder / name), "--quiet", *arguments]
    done = CliRunner().invoke(dlcalc_search.main, [str(folder / f"{name}.yaml"), *out])
    assert done.exit_code == exit_code, done.output


@pytest.fixture(autouse=True)
def _folder(searched, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    for entry in searched.iterdir():
        (tmp_path / entry.name).symlink_to(entry)


def compare(*arguments, exit_code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return done


def answer(*arguments, exit_code=0):
    """The --json object, which is all that is on stdout."""
    return json.loads(compare(*arguments, "--json", exit_code=exit_code).stdout, parse_constant=pytest.fail)


def candidates(facts):
    return [one for section in facts["sections"] for one in section["candidates"]]


def differences(facts):
    for section in facts["sections"]:
        found = [one["difference"] for one in (*section["groups"], *section["winners"]) if one["difference"]]
        yield from ((section, one) for one in found)


def named(section, name):
    """The candidate that a difference calls so."""
    (found,) = [
        one for one in section["candidates"] if f"{one['devices']:,} {one['machine']}, {one['precision']}" == name
    ]
    return found


# ---- what is printed ----------------------------------------------------------------------------------------------


def test_the_report_says_what_wins_why_and_what_it_rests_on():
    done = compare("shootout")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for part in ("llama3-8b: the best plan of each machine, most tokens per dollar first", "What 1.00 T tokens take",
                 "80 % sure", "MFU %", "tokens/J", "free GiB", "Why ", "machine (", "Tokens/s per device", "█",
                 "The winner ", "Prices and powers", "a relative's", "Cloud BM.GPU.H100.8 (2026-09)"):  # fmt: skip
        assert part in done.stdout


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    limits = ("--budget-usd", "1e9", "--deadline-days", "1000")
    failures = ("--mtbf-hours-per-device", "50000", "--checkpoint-write-s", "60", "--restart-s", "600")
    printed = compare("shootout", *limits, *failures).stdout
    assert max(map(len, printed.splitlines())) <= columns
    best = answer("shootout", *limits, *failures)["sections"][0]["groups"][0]["best"]
    assert f"{best['step_time_s']['value']:.4g}" in printed
    assert "$10.00" in printed or "10.00" in printed  # the price of an H100 is never left out


def test_a_single_scenario_has_nothing_to_be_compared_with():
    printed = compare("alone").stdout
    assert "Why" not in printed
    assert "The winner" not in printed
    assert "h100" in printed


# ---- what is computed ---------------------------------------------------------------------------------------------


def test_a_candidate_is_the_best_row_of_its_scenario():
    result = open_result("shootout")
    found = candidates(answer("shootout"))
    assert sorted(one["scenario"] for one in found) == sorted(result.scenarios)
    for one in found:
        row = result.best(one["scenario"], 1)[0]
        assert one["step_time_s"]["value"] == pytest.approx(row["step_time_s"], rel=1e-9)
        assert one["step_time_s"]["low"] == pytest.approx(row["step_time_low_s"], rel=1e-9)
        assert one["step_time_s"]["high"] == pytest.approx(row["step_time_high_s"], rel=1e-9)
        assert one["headroom_bytes"] == pytest.approx(row["headroom_bytes"])
        assert one["tokens_per_s_per_device"]["value"] == pytest.approx(row["tokens_per_s_per_device"])
        assert sum(one["time_s"].values()) == pytest.approx(row["step_time_s"])
        assert {knob: row[knob] for knob in one["plan"]} == one["plan"]


def test_days_cost_and_energy_are_the_products_that_they_are():
    facts = answer("shootout", "--tokens", "2T", "--price", "h100=3", "--power", "h100=1300", "--pue", "1.25")
    (one,) = [one for one in candidates(facts) if (one["machine"], one["devices"]) == ("h100", 32)]
    days = 2e12 / (256 * 8192) * one["step_time_s"]["value"] / 86_400
    assert one["days"]["value"] == pytest.approx(days)
    assert one["cost_usd"]["value"] == pytest.approx(days * 24 * 32 * 3)
    assert one["energy_j"]["value"] == pytest.approx(days * 86_400 * 32 * 1300 * 1.25)
    assert one["tokens_per_usd"]["value"] == pytest.approx(2e12 / one["cost_usd"]["value"])
    assert one["tokens_per_j"]["value"] == pytest.approx(2e12 / one["energy_j"]["value"])
    for quantity in ("days", "cost_usd", "energy_j", "tokens_per_usd", "tokens_per_j", "tokens_per_s"):
        assert one[quantity]["low"] < one[quantity]["value"] < one[quantity]["high"]
    (inputs,) = [one for one in facts["inputs"] if one["machine"] == "h100"]
    assert (inputs["price_source"], inputs["power_source"]) == ("--price", "--power")
    assert inputs["host_watts_per_device"] is None


def test_power_counts_the_host_where_its_maker_says_what_a_node_draws():
    """A DGX H100 draws 10.2 kW; of an MI300X the device alone is known."""
    inputs = {one["machine"]: one for one in answer("shootout", "--power", "mi300x=1300")["inputs"]}
    assert inputs["h100"]["watts_per_device"] == pytest.approx(10_200 / 8)
    assert inputs["h100"]["host_watts_per_device"] == pytest.approx(10_200 / 8 - 700)
    alone = {one["machine"]: one for one in answer("shootout")["inputs"]}  # so that all are compared alike
    assert {name: alone[name]["watts_per_device"] for name in ("h100", "mi300x")} == {"h100": 700, "mi300x": 750}
    assert {one["host_watts_per_device"] for one in alone.values()} == {None}
    printed = " ".join(compare("shootout").stdout.split())
    assert re.search(r"the power of [\w, ]*h100[\w, ]* is that of devices without their hosts: --power", printed)
    assert "networks between nodes and storage, and cooling, left out (--pue)" in printed
    assert "the site takes 1.20 times as much (--pue)" in " ".join(compare("shootout", "--pue", 1.2).stdout.split())
    assert "without their hosts" not in compare("shootout", "--power", "mi300x=1300").stdout


@pytest.mark.parametrize(
    ("objective", "quantity", "sign"),
    [("tokens_per_dollar", "tokens_per_usd", -1), ("step_time", "step_time_s", 1), ("days", "days", 1),
     ("energy", "energy_j", 1)],
)  # fmt: skip
@pytest.mark.parametrize("by", ["hardware", "devices", "precision"])
def test_the_best_of_a_group_is_the_best_of_its_scenarios(objective, quantity, sign, by):
    facts = answer("shootout", "--objective", objective, "--by", by)
    (section,) = facts["sections"]
    values = [sign * one[quantity]["value"] for one in section["candidates"]]
    assert values == sorted(values)
    axis = {"hardware": "machine"}.get(by, by)
    for group in section["groups"]:
        members = [one for one in section["candidates"] if one[axis] == group["key"][by]]
        assert len(members) == group["n_scenarios"]
        assert sign * group["best"][quantity]["value"] == min(sign * one[quantity]["value"] for one in members)


def test_the_best_per_machine_and_number_of_devices():
    (section,) = answer("shootout", "--by", "hardware", "--by", "devices")["sections"]
    assert len(section["groups"]) == len(section["candidates"]) == 9
    assert {group["n_scenarios"] for group in section["groups"]} == {1}


def test_a_price_turns_the_order_round():
    dear = answer("shootout", "--price", "h100=1000", "--price", "mi300x=1000")["sections"][0]["groups"]
    cheap = answer("shootout", "--price", "h100=0.01", "--price", "mi300x=1000")["sections"][0]["groups"]
    assert dear[0]["key"]["hardware"] == "b200"
    assert cheap[0]["key"]["hardware"] == "h100"


# ---- why ----------------------------------------------------------------------------------------------------------


FAILURES = ("--mtbf-hours-per-device", "500", "--checkpoint-write-s", "60", "--restart-s", "600")
COMPARISONS = [
    ("shootout",),
    ("shootout", "--objective", "step_time"),
    ("shootout", "--objective", "days", "--by", "devices"),
    ("shootout", "--objective", "energy", "--by", "hardware", "--by", "devices"),
    ("shootout", "--by", "devices", *FAILURES),
    ("precisions", "--price", "h20=1.5"),
    ("precisions", "--price", "h20=9", "--by", "precision"),
    ("shootout", "slow", "--objective", "step_time"),
    ("shootout", "precisions", "--price", "h20=1"),
]


@pytest.mark.parametrize("arguments", COMPARISONS, ids=" ".join)
def test_factors_multiply_to_the_ratio_and_terms_to_the_factor(arguments):
    facts = answer(*arguments)
    objective = facts["objective"]
    quantity = {"tokens_per_dollar": "tokens_per_usd", "step_time": "step_time_s", "energy": "energy_j"}.get(
        objective["name"], "days"
    )
    found = list(differences(facts))
    assert found
    for section, one in found:
        best, rest = (named(section, one[who])[quantity]["value"] for who in ("winner", "other"))
        assert one["ratio"] == pytest.approx(best / rest if objective["largest"] else rest / best)
        assert one["ratio"] >= 1 - 1e-12
        assert math.prod(factor["factor"] for factor in one["factors"]) == pytest.approx(one["ratio"], rel=1e-9)
        for factor in one["factors"]:
            if factor["what"] in ("machine", "recipe", "plan"):
                product = math.prod(term["factor"] for term in factor["terms"])
                assert product == pytest.approx(factor["factor"], rel=1e-9)
                for term in factor["terms"]:
                    assert (term["factor"] - 1) * (term["before_s"] - term["after_s"]) >= 0


def test_the_machines_factor_is_what_3dtrn_says_of_the_same_plan_there():
    """The loser's plan on the winner's machine, by another way: a what-if of the result's row."""
    facts = answer("shootout", "--objective", "days", "--by", "hardware")
    registry = HardwareRegistry()
    checked = 0
    for section, one in differences(facts):
        (machine,) = [factor for factor in one["factors"] if factor["what"] == "machine"]
        if one["as_if"] or one["factors"][0]["what"] != "machine":
            continue
        other, winner = named(section, one["other"]), named(section, one["winner"])
        row = row_of(open_result("shootout"), Path("shootout"), 1, other["scenario"], registry)
        before, after = (row.resolve(change).estimate() for change in ({}, {"hardware": winner["hardware"]}))
        assert machine["factor"] == pytest.approx(float(before.step_time_s / after.step_time_s), rel=1e-9)
        matmul = next(term for term in machine["terms"] if term["term"] == "matmul")
        assert matmul["before_s"] / matmul["after_s"] == pytest.approx(
            float(before.step.matmul_s / after.step.matmul_s)
        )
        checked += 1
    assert checked


# ---- over device counts -------------------------------------------------------------------------------------------


def test_curves_and_winners_are_read_off_the_studied_counts():
    (section,) = answer("shootout", "--objective", "step_time")["sections"]
    assert [winner["devices"] for winner in section["winners"]] == [8, 32, 128]
    for curve in section["curves"]:
        per_device = [point["tokens_per_s_per_device"]["value"] for point in curve["points"]]
        assert curve["scaling"] == pytest.approx([value / per_device[0] for value in per_device])
        assert [point["devices"] for point in curve["points"]] == [8, 32, 128]
    for winner in section["winners"]:
        there = [one for one in section["candidates"] if one["devices"] == winner["devices"]]
        fastest = min(there, key=lambda one: one["step_time_s"]["value"])
        assert winner["best"]["scenario"] == fastest["scenario"]
        assert winner["runner_up"]["machine"] != winner["best"]["machine"]


def test_where_the_winner_changes():
    """By tokens per dollar an H20 at a fitting price wins where the H100 holds no plan, and loses elsewhere."""
    facts = answer("precisions", "--price", "h20=9")
    section = next(section for section in facts["sections"] if section["model"] == "llama3-70b")
    assert {(one["machine"], one["devices"]) for one in section["nothing_fits"]} == {("h100", 16)}
    assert [(one["devices_before"], one["devices_after"]) for one in section["changes"]] == [(16, 32)]
    assert section["changes"][0]["before"].startswith("h20")
    assert section["changes"][0]["after"].startswith("h100")
    printed = compare("precisions", "--price", "h20=9").stdout
    assert "The winner changes between 16 and 32 devices, from h20, fp8 to h100, fp8." in printed
    assert "Nothing fits on 16 h100 in bf16: all" in printed
    assert "GiB, limit " in " ".join(printed.split())


# ---- limits -------------------------------------------------------------------------------------------------------


def test_what_a_budget_buys_and_what_a_deadline_costs():
    everything = candidates(answer("shootout"))
    budget = sorted(one["cost_usd"]["value"] for one in everything)[4]
    deadline = sorted(one["days"]["value"] for one in everything)[5]
    facts = answer("shootout", "--budget-usd", budget * 1.0001, "--deadline-days", deadline * 1.0001)
    fastest, cheapest = facts["sections"][0]["choices"]
    within = [one for one in everything if one["cost_usd"]["value"] <= budget and one["days"]["value"] <= deadline]
    assert within
    assert (fastest["question"], cheapest["question"]) == ("fastest", "cheapest")
    assert fastest["n_within"] == len(within)
    assert fastest["best"]["days"]["value"] == min(one["days"]["value"] for one in within)
    assert cheapest["best"]["cost_usd"]["value"] == min(one["cost_usd"]["value"] for one in within)
    for one in candidates(facts):
        expected = "beyond" if one["cost_usd"]["value"] > budget * 1.0001 else (
            "within" if one["cost_usd"]["high"] <= budget * 1.0001 else "perhaps")  # fmt: skip
        assert one["within_budget"] == expected


def test_a_budget_that_buys_nothing_is_exit_3_with_what_comes_nearest():
    done = compare("shootout", "--budget-usd", 1000, exit_code=3)
    cheapest = min(candidates(answer("shootout")), key=lambda one: one["cost_usd"]["value"])
    assert f"Nothing is within $1.00 k; nearest is {cheapest['devices']} {cheapest['machine']}" in done.stdout
    assert done.stderr.startswith("error: llama3-8b: nothing is within $1.00 k; nearest is ")
    facts = answer("shootout", "--budget-usd", 1000, exit_code=3)
    (choice,) = facts["sections"][0]["choices"]
    assert choice["over_factor"] == pytest.approx(cheapest["cost_usd"]["value"] / 1000)


def test_a_deadline_without_prices_is_met_by_the_smallest_cluster_that_can(tmp_path):
    search(
        tmp_path,
        "unpriced",
        ALONE.replace("study: alone", "study: unpriced").replace("hardware: h100", "hardware: h20"),
    )
    everything = candidates(answer("unpriced"))
    deadline = sorted(one["days"]["value"] for one in everything)[1] * 1.0001
    (choice,) = answer("unpriced", "--deadline-days", deadline)["sections"][0]["choices"]
    assert choice["question"] == "smallest"
    assert choice["best"]["devices"] == 32
    assert "The smallest in " in compare("unpriced", "--deadline-days", deadline).stdout


# ---- failures -----------------------------------------------------------------------------------------------------


def test_failures_stretch_days_by_goodput_more_on_more_devices():
    options = ("--mtbf-hours-per-device", 5000, "--checkpoint-write-s", 60, "--restart-s", 600)
    without = {one["scenario"]: one for one in candidates(answer("shootout"))}
    goodput = {}
    for one in candidates(answer("shootout", *options)):
        lost = one["goodput"]
        goodput[one["devices"]] = lost["goodput_fraction"]
        assert lost["failure_interval_s"] == pytest.approx(5000 * 3600 / one["devices"])
        assert lost["first_order_checkpoint_interval_s"] == pytest.approx(
            math.sqrt(2 * 60 * lost["failure_interval_s"])
        )
        for quantity in ("days", "cost_usd", "energy_j"):
            before = without[one["scenario"]][quantity]["value"]
            assert one[quantity]["value"] * lost["goodput_fraction"] == pytest.approx(before)
    assert goodput[8] > goodput[32] > goodput[128]
    printed = compare("shootout", *options).stdout
    assert "doi.org/10.1016/j.future.2004.11.016" in printed
    assert "goodput %" in printed


def test_a_job_that_never_gets_anywhere_never_ends():
    options = ("--mtbf-hours-per-device", 0.01, "--checkpoint-write-s", 3600, "--restart-s", 3600)
    printed = compare("shootout", "--objective", "days", *options).stdout
    assert "never" in printed
    assert {one["days"]["value"] for one in candidates(answer("shootout", *options))} == {None}


def test_a_job_that_fails_sooner_than_it_restarts_makes_no_progress_and_is_said_to():
    """100 device-hours: 8 devices fail every 12.5 hours, 128 every 47 minutes, while a restart takes an hour."""
    options = ("--mtbf-hours-per-device", 100, "--checkpoint-write-s", 60, "--restart-s", 3600)
    for one in candidates(answer("shootout", *options)):
        goes_on = one["devices"] < 100
        assert one["goodput"]["makes_progress"] == goes_on
        assert (one["goodput"]["goodput_fraction"] > 0) == goes_on
        for quantity in ("days", "cost_usd", "energy_j"):
            assert (one[quantity]["value"] is not None) == goes_on
    winners = answer("shootout", *options)["sections"][0]["winners"]
    assert [winner["devices"] for winner in winners] == [8, 32]
    printed = " ".join(compare("shootout", "--by", "devices", *options).stdout.split())
    assert "No progress on 128 devices: the job fails every 46 min 52 s, while a restart and a checkpoint" in printed
    assert "e+" not in printed

    nothing = compare("shootout", "--budget-usd", "1e15", *("--mtbf-hours-per-device", 1, *options[2:]), exit_code=3)
    assert "no job makes progress between its failures" in nothing.stderr


# ---- several results, several meanings ----------------------------------------------------------------------------


def test_two_machines_of_one_name_are_told_apart_by_their_studies():
    (section,) = answer("shootout", "slow")["sections"]
    machines = {one["machine"] for one in section["candidates"]}
    assert {"h100 (shootout)", "h100 (slow)"} <= machines
    for one in answer("shootout", "slow", "--price", "h100=2")["inputs"]:
        assert (one["usd_per_device_hour"] == 2) == one["machine"].startswith("h100")


def test_one_price_for_one_of_two_machines_of_the_same_name():
    inputs = answer("shootout", "slow", "--price", "h100 (slow)=2")["inputs"]
    prices = {one["machine"]: one["usd_per_device_hour"] for one in inputs}
    assert prices["h100 (slow)"] == 2
    assert prices["h100 (shootout)"] == 10


def test_a_placed_plan_is_compared_as_placed(tmp_path):
    space = Path(__file__).parents[2] / "search_spaces" / "llama3_8b_fragmented.yaml"
    for name, option in (("racks", "--place"), ("paper", "--no-place")):
        done = CliRunner().invoke(dlcalc_search.main, [str(space), "-o", str(tmp_path / name), option, "--quiet"])
        assert done.exit_code == 0, done.output
    facts = answer("racks", "paper", "--tokens", "1T")
    on_paper, placed = facts["sections"][0]["candidates"]
    (row,) = [row for row in open_result("racks").placed_plans() if row["placed_rank"] == 1]
    assert placed["step_time_s"]["value"] == pytest.approx(row["placed_step_time_s"], rel=1e-9)
    assert (bool(placed["placed_on"]), on_paper["placed_on"]) == (True, None)
    assert any("is compared as placed on" in note for note in facts["notes"])
    assert any(note.startswith("2 scenarios are llama3-8b on 128 h100 in bf16") for note in facts["notes"])


def test_models_are_not_compared_with_each_other():
    facts = answer("shootout", "precisions", "--price", "h20=1", "--by", "model")
    assert [section["model"] for section in facts["sections"]] == ["llama3-8b", "llama3-70b"]
    assert [len(section["groups"]) for section in facts["sections"]] == [1, 1]
    printed = compare("precisions", "--price", "h20=1", "--by", "model").stdout
    assert "llama3-8b, llama3-70b: the best plan of each model" in printed


def test_an_empty_column_says_why():
    printed = compare("precisions").stdout
    assert "the price of h20 is not known: --price" in " ".join(printed.split())  # so it is by step time
    assert "shortest step first" in printed
    assert "a recipe without a token budget has no days" in printed


def test_what_was_not_finished_is_compared_and_says_so(tmp_path):
    shutil.copytree("shootout", tmp_path / "running")
    manifest = tmp_path / "running" / "_manifest.json"
    lines = manifest.read_text().replace('"status": "complete"', '"status": "running"').splitlines()
    document = json.loads("\n".join(lines))
    gone = [shard for shard in document["shards"] if shard["scenario"] == 0]
    document["shards"] = [shard for shard in document["shards"] if shard["scenario"]]
    manifest.write_text(json.dumps(document))
    printed = compare("running").stdout
    assert "the search was not finished" in printed
    assert "nothing of llama3-8b on 8 h100, bf16 is finished yet; it is left out" in printed
    assert gone


def test_what_was_searched_for_little_memory_says_so(tmp_path):
    search(tmp_path, "lean", SHOOTOUT.replace("study: shootout", "study: lean"), "--sort", "memory")
    assert "search again without --sort memory" in " ".join(compare("lean").stdout.split())


# ---- tables -------------------------------------------------------------------------------------------------------


def test_the_tables_hold_one_row_per_scenario_with_units():
    compare("precisions", "--price", "h20=1", "--tokens", "1T", "--csv", "t.csv", "--parquet", "t.parquet")
    rows = list(csv.DictReader(io.StringIO(Path("t.csv").read_text())))
    table = pq.read_table("t.parquet")
    assert len(rows) == table.num_rows == 16
    assert list(rows[0]) == table.column_names == [column.name for column in COLUMNS]
    for field in table.schema:
        assert field.metadata[b"unit"]
        assert field.metadata[b"description"]
    for text, row in zip(rows, table.to_pylist(), strict=True):
        assert text["step_time_s"] == ("" if row["step_time_s"] is None else str(row["step_time_s"]))
        assert (text["fits"] == "True") == row["fits"] == (row["step_time_s"] is not None)
        if row["fits"]:
            terms = [value for name, value in row.items() if name.startswith("term_")]
            assert sum(terms) == pytest.approx(row["step_time_s"])
            assert row["cost_usd"] == pytest.approx(row["days"] * 24 * row["devices"] * row["usd_per_device_hour"])
            assert row["energy_kwh"] == pytest.approx(row["days"] * 24 * row["devices"] * row["watts_per_device"] / 1e3)
    assert np.count_nonzero([not row["fits"] for row in table.to_pylist()]) == 2


def test_csv_on_stdout_is_the_file_and_nothing_else():
    compare("shootout", "--csv", "t.csv")
    assert compare("shootout", "--csv", "-").stdout == Path("t.csv").read_text()


# ---- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("absent",), "absent: no such result directory"),
        (("shootout.yaml",), "shootout.yaml: a file; a result is the directory that dlcalc-search wrote"),
        (("ours",), "ours: not a result of dlcalc-search (_manifest.json is missing)"),
        (("shootout", "./shootout"), "shootout: given twice"),
        (("shootout", "--price", "h10=2"), "--price h10: unknown hardware 'h10'; did you mean h100"),
        (("shootout", "--power", "b20=2"), "--power b20: unknown hardware 'b20'; did you mean b200"),
        (("shootout", "--price", "xyz=2"), "--price xyz: unknown hardware 'xyz'; known: b200, h100, mi300x"),
        (("shootout", "--price", "h100=0"), "--price h100: '0' must be above 0"),
        (("shootout", "--price", "h100=-1"), "--price h100: '-1' must be above 0"),
        (("shootout", "--price", "h100=nan"), "--price h100: 'nan' is not a number of US dollars above 0"),
        (("shootout", "--price", "h100=inf"), "--price h100: 'inf' is not a number of US dollars above 0"),
        (("shootout", "--price", "h100=1e300"), "--price h100: '1e300' must be between"),
        (("shootout", "--price", "2.49"), "--price: '2.49' has no name; write NAME=NUMBER, such as --price h100=2.49"),
        (("shootout", "--price", "h100="), "--price: 'h100=' has no number; write NAME=NUMBER, such as --price h100=2"),
        (("shootout", "--price", "h200"), "--price: 'h200' has no number; write NAME=NUMBER, such as --price h200="),
        (("shootout", "--price", "h200=3"), "--price h200: is not among the compared machines, which are "),
        (("shootout", "--power", "h100=1kW"), "--power h100: '1kW' is not a number above 0, such as 1300"),
        (("shootout", "--deadline-days", "30d"), "--deadline-days: '30d' is not a number above 0, such as 90"),
        (("shootout", "--tokens", "15"), "--tokens: 15 are fewer than one step takes ("),
        (("shootout", "--price", "h100=1", "--price", "dgx_h100=2"), "--price dgx_h100: h100 is given twice"),
        (("shootout", "--pue", "0.9"), "--pue: 0.9 is not a power usage effectiveness"),
        (("shootout", "--tokens", "15X"), "--tokens: '15X' is not a number of tokens"),
        (("shootout", "--tokens", "-1"), "--tokens: '-1' must be above 0"),
        (("shootout", "--budget-usd", "nan"), "--budget-usd: 'nan' is not a number of US dollars above 0"),
        (("shootout", "--deadline-days", "0"), "--deadline-days: '0' must be above 0"),
        (("shootout", "--restart-s", "5"), "belong together; missing: --mtbf-hours-per-device, --checkpoint-write-s"),
        (("precisions", "--objective", "tokens_per_dollar"), "the price of h20 is not known; give it: --price h20="),
        (("precisions", "--objective", "days"), "has no token budget; give one, such as --tokens 15T"),
        (("precisions", "--budget-usd", "5", "--tokens", "1T"), "--budget-usd: the price of h20 is not known"),
        (("shootout", "precisions", "--objective", "step_time"), "tokens do not compare"),
        (("shootout", "--csv", "absent/t.csv"), "absent/t.csv: cannot be written (no such file or directory)"),
        (("shootout", "--parquet", "absent/t"), "absent/t: cannot be written (no such file or directory)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_would_be_right(arguments, problem):
    done = compare(*arguments, exit_code=2)
    assert done.stdout == ""
    assert problem in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_power_that_nobody_published_is_asked_for(tmp_path):
    search(tmp_path, "tpu", SHOOTOUT.replace("study: shootout", "study: tpu").replace("b200", "tpu_v5p"))
    done = compare("tpu", "--objective", "energy", exit_code=2)
    assert "the power of tpu_v5p is not known; give it: --power tpu_v5p=WATTS_PER_DEVICE" in done.stderr
    assert compare("tpu", "--objective", "energy", "--power", "tpu_v5p=450").exit_code == 0


def test_where_nothing_fits_at_all_the_nearest_misses_are_named():
    done = compare("hopeless", exit_code=3)
    assert done.stdout == ""
    assert done.stderr.startswith("error: no plan of any scenario fits\n")
    assert "GiB, limit " in done.stderr


def test_a_model_of_which_nothing_fits_beside_one_that_does():
    facts = answer("shootout", "hopeless")
    assert [section["model"] for section in facts["sections"]] == ["llama3-8b"]
    assert "llama3-405b: no plan of any scenario fits" in facts["notes"]
