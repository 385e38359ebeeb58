"""The second stage of a search as its users meet it: a fabric in, two rankings and the nodes of the best plans out."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from dlcalc import training_3d
from dlcalc.dlcalc_search import main
from dlcalc.errors import ResultError
from dlcalc.results.placed import PLACEMENTS_SCHEMA, PLANS_SCHEMA
from dlcalc.results.reader import open_result
from dlcalc.topology.fabric import spanning_edges
from dlcalc.topology.sources.read import read_fabric

SPACE = """
study: placed
model: llama3-8b
hardware: h100
cluster: {devices: 128}
recipe: {seq_len: 4096, global_batch: 512, precision: bf16, framework: megatron}
space: {cp: 1, micro_batch: [1, 2, 4], recompute: none, zero_stage: 1, vpp: 1, split: even}
"""
FRAGMENTED = """
tier_gbit_per_s_per_node: [3200, 400]
switches:
  - switch: spine
    switches:
"""
FLAT = "switches: [{switch: only, nodes: 'n[0-19]'}]\n"
NIC = 400e9 / 8


def racks(free=2, count=8):
    """Racks of eight nodes, of which ``free`` are; eight times oversubscribed."""
    lines = []
    for rack in range(count):
        busy = ", ".join(f"{{name: r{rack}n{node}, state: busy}}" for node in range(free, 8))
        lines.append(f"      - {{switch: rack{rack}, nodes: ['r{rack}n[0-{free - 1}]', {busy}]}}")
    return FRAGMENTED + "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(SPACE)
    Path("racks.yaml").write_text(racks())
    Path("flat.yaml").write_text(FLAT)


def run(*arguments, exit_code=0, door=main):
    done = CliRunner().invoke(door, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == exit_code, done.stderr
    return done


def answer(*arguments, exit_code=0):
    return json.loads(run(*arguments, "--json", exit_code=exit_code).stdout, parse_constant=pytest.fail)


def timeless(summary):
    clocks = ("seconds", "plans_per_s", "peak_rss_bytes", "placing_s")
    return {key: value for key, value in summary.items() if key not in clocks}


# --- rankings ---------------------------------------------------------------------------------------------------


def test_on_a_fragmented_cluster_another_plan_is_the_best():
    """Sixteen nodes in eight racks, the uplinks eight times oversubscribed.

    On paper every node has its NICs for itself, and the best plan is plain data parallelism: 8 G gradients of 4 bytes
    through each device. On these nodes its one ring of 16 passes every rack's uplink, on which its two nodes there have
    2 x 1/8 of what their NICs could do: a quarter. A plan with tp = 2 holds half of the weights on each device and
    sends half as much, for matmuls that are a little smaller: slower on paper, faster here.
    """
    scenario = answer("space.yaml", "--topology", "racks.yaml", "--place")["scenarios"][0]
    placed = scenario["placed"]
    paper, first, best = scenario["best"][0], placed["first_on_paper"], placed["best"][0]

    assert (paper["tp"], paper["pp"], paper["dp"]) == (1, 1, 128)
    assert first["plan_index"] == paper["plan_index"]
    assert first["slower_links"] == {"shard": 0.25}
    assert placed["order_changed"]
    assert (best["tp"], best["dp"]) == (2, 64)
    assert best["step_time_s"] > first["step_time_s"]
    assert best["placed_step_time_s"] < first["placed_step_time_s"]
    assert first["placed_rank"] > 1
    assert best["rank"] > 1
    # what is sent takes four times as long: of what shows, more than was there before is new
    assert set(first["added_s"]) <= {"grad_reduce", "param_gather"}
    assert first["placed_step_time_s"] - first["step_time_s"] == pytest.approx(sum(first["added_s"].values()))
    assert sum(placed["breakdown"]["time_s"].values()) == pytest.approx(best["placed_step_time_s"])


def test_with_full_uplinks_the_same_nodes_change_nothing():
    """The same racks, not oversubscribed: only the latency of the spine is left."""
    Path("full.yaml").write_text(racks().replace("[3200, 400]", "[3200, 3200]"))
    placed = answer("space.yaml", "--topology", "full.yaml")["scenarios"][0]["placed"]
    assert placed["best"][0]["rank"] == 1
    assert placed["best"][0]["slower_links"] == {}
    assert 1.0 < placed["best"][0]["placed_step_time_s"] / placed["best"][0]["step_time_s"] < 1.001


@pytest.mark.parametrize("model", ["llama3-8b", "mixtral-8x7b"])
def test_on_a_flat_fabric_every_placed_plan_is_its_estimate_bit_for_bit(model):
    Path("space.yaml").write_text(SPACE.replace("llama3-8b", model))
    placed = answer("space.yaml", "--topology", "flat.yaml")["scenarios"][0]["placed"]
    rows = open_result("results/placed").placed_plans()

    assert len(rows) > 20
    for row in rows:
        for quantity in ("step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "hfu", "tokens_per_s_per_device"):
            assert row[f"placed_{quantity}"] == row[quantity]
    ranks = [row["rank"] for row in rows if row["rank"]]
    assert ranks == sorted(ranks)
    assert ranks[0] == 1
    assert not placed["order_changed"]
    assert placed["best"][0]["added_s"] == {}


def test_every_placed_plan_is_at_least_as_slow_and_keeps_its_memory():
    run("space.yaml", "--topology", "racks.yaml")
    rows = open_result("results/placed").placed_plans()
    assert [row["placed_rank"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["placed_step_time_s"] >= row["step_time_s"] for row in rows)
    times = [row["placed_step_time_s"] for row in rows]
    assert times == sorted(times)
    by_paper = sorted((row for row in rows if row["rank"]), key=lambda row: row["rank"])
    assert [row["step_time_s"] for row in by_paper] == sorted(row["step_time_s"] for row in by_paper)


def test_only_as_many_meshes_are_placed_as_asked_for():
    placed = answer("space.yaml", "--topology", "racks.yaml", "--place-meshes", 2)["scenarios"][0]["placed"]
    rows = open_result("results/placed").placed_plans()
    assert placed["n_meshes"] == 2
    assert len({(row["tp"], row["pp"], row["dp"]) for row in rows}) == 2
    assert min(row["rank"] for row in rows) == 1  # the best ones

    only = answer("space.yaml", "--topology", "racks.yaml", "--resume", "--place-meshes", 1)["scenarios"][0]["placed"]
    assert only["n_faster_on_paper"] > 0  # tp = 2 among them
    every = answer("space.yaml", "--topology", "racks.yaml", "--resume")["scenarios"][0]["placed"]
    assert every["n_faster_on_paper"] == 0
    assert every["best"][0]["placed_step_time_s"] < only["best"][0]["placed_step_time_s"]


# --- nodes ------------------------------------------------------------------------------------------------------


TWO_PODS = """
tier_gbit_per_s_per_node: [3200, 3200, 100]
switches:
  - switch: core
    switches:
      - {switch: pod0, switches: [{switch: a, nodes: 'a[0-7]'}, {switch: b, nodes: [{name: b0, state: busy}]}]}
      - {switch: pod1, switches: [{switch: c, nodes: 'c[0-7]'}, {switch: d, nodes: 'd[0-7]'}]}
"""


def test_where_hops_are_equal_a_mesh_sits_where_its_traffic_takes_less_time():
    """Two stages fill two racks: 32 hops whichever these are, but only two of the three have no slow core between."""
    Path("space.yaml").write_text(SPACE.replace("space: {", "space: {tp: 1, pp: 2, "))
    Path("pods.yaml").write_text(TWO_PODS)
    placed = answer("space.yaml", "--topology", "pods.yaml", "-o", "out")["scenarios"][0]["placed"]

    assert {name[0] for ring in placed["rings"] for name in ring} == {"c", "d"}
    assert placed["best"][0]["hops"] == 32
    assert placed["best"][0]["placed_step_time_s"] == pytest.approx(placed["best"][0]["step_time_s"], rel=1e-3)
    table = pq.read_table("out/_placed/placements.parquet").to_pylist()
    assert {row["objective"] for row in table} == {"seconds"}


def test_without_the_rate_of_every_tier_meshes_are_placed_by_hops():
    Path("space.yaml").write_text(SPACE.replace("space: {", "space: {tp: 1, pp: 2, "))
    Path("pods.yaml").write_text(TWO_PODS.replace("[3200, 3200, 100]", "[3200, null, 100]"))
    answer("space.yaml", "--topology", "pods.yaml", "-o", "out")
    assert {row["objective"] for row in pq.read_table("out/_placed/placements.parquet").to_pylist()} == {"hops"}


def test_the_nodes_are_free_ones_each_once_and_the_hops_are_theirs():
    placed = answer("space.yaml", "--topology", "racks.yaml")["scenarios"][0]["placed"]
    result, fabric = open_result("results/placed"), read_fabric("racks.yaml")
    free = {node.name for node in fabric.candidates()}
    placements = result.placements()

    assert len(placements) == placed["n_placements"]
    for row in placements:
        nodes = [node for ring in row["rings"] for node in ring]
        assert len(nodes) == len(set(nodes)) == row["n_rings"] * row["ring_nodes"] == 16
        assert set(nodes) <= free
        assert {len(ring) for ring in row["rings"]} == {row["ring_nodes"]}
        assert row["node_devices"] == 8
        hops = sum(2 * spanning_edges(fabric, ring) for ring in row["rings"])
        assert hops == row["cost_hops"] >= row["lower_bound_hops"]
    best = placed["best"][0]
    assert placed["rings"] == placements[best["placement"]]["rings"]
    assert best["hops"] == placements[best["placement"]]["cost_hops"]
    numbers = {row["placement"] for row in result.placed_plans()}
    assert numbers == {row["placement"] for row in placements}


def test_nvlink_domains_of_several_machines_are_nodes():
    """Racks of 18 machines with four devices, of which a job gets 64 devices: 16 machines of one rack are a node."""
    lines = ["node_defaults: {n_devices: 4}", "switches:", "- switch: spine", "  switches:"]
    for rack in range(4):
        machines = ", ".join(f"{{name: r{rack}m{machine}, domain: rack{rack}}}" for machine in range(18))
        lines.append(f"  - {{switch: leaf{rack}, nodes: [{machines}]}}")
    Path("nvl.yaml").write_text("\n".join(lines))
    space = SPACE.replace("h100", "gb200_nvl72").replace("{devices: 128}", "{devices: 256}")
    Path("space.yaml").write_text(space)
    placed = answer("space.yaml", "--topology", "nvl.yaml")["scenarios"][0]["placed"]
    assert placed["why_none"] is None
    for row in open_result("results/placed").placements():
        for ring in row["rings"]:
            for start in range(0, len(ring), 16):
                assert len({name[:2] for name in ring[start : start + 16]}) == 1  # one rack
        assert row["node_devices"] == 4
        assert row["n_rings"] * row["ring_nodes"] == 64


# --- what is written --------------------------------------------------------------------------------------------


def test_the_placed_tables_explain_themselves_and_others_do_not_stumble_over_them():
    run("space.yaml", "--topology", "racks.yaml")
    for name, schema in (("plans", PLANS_SCHEMA), ("placements", PLACEMENTS_SCHEMA)):
        found = pq.read_schema(f"results/placed/_placed/{name}.parquet")
        assert found.equals(schema)
        assert all(found.field(column).metadata[b"description"] for column in found.names)
        assert all(b"unit" in found.field(column).metadata for column in found.names)
        assert found.metadata[b"dlcalc.topology"] == b"racks.yaml"
        assert b"study: placed" in found.metadata[b"dlcalc.space"]
    n_rows = sum(shard.n_rows for shard in open_result("results/placed").shards())
    assert len(pd.read_parquet("results/placed")) == n_rows
    assert duckdb.sql("SELECT count(*) FROM 'results/placed/*.parquet'").fetchall() == [(n_rows,)]


def test_a_study_is_placed_afterwards_elsewhere_and_not_at_all(monkeypatch):
    """Rows do not depend on the fabric: with --resume they are taken as they are, and only placed."""
    first = answer("space.yaml", "--topology", "racks.yaml")
    before = Path("results/placed/_manifest.json").read_text()
    monkeypatch.setattr("dlcalc.workflows.sweep._blocks", lambda *_, **__: pytest.fail("searched again"))

    assert timeless(answer("space.yaml", "--topology", "racks.yaml", "--resume")) == timeless(first)
    assert Path("results/placed/_manifest.json").read_text() == before

    unplaced = answer("space.yaml", "--resume")
    assert "placed" not in unplaced["scenarios"][0]
    assert not Path("results/placed/_placed").exists()
    result = open_result("results/placed")
    assert (result.placed, result.placed_plans(), result.placements()) == (None, [], [])
    assert "placed" not in json.loads(Path("results/placed/_manifest.json").read_text())

    elsewhere = answer("space.yaml", "--topology", "flat.yaml", "--resume")
    assert not elsewhere["scenarios"][0]["placed"]["order_changed"]
    assert open_result("results/placed").placed.topology == "flat.yaml"


def test_an_interruption_while_placing_loses_nothing(monkeypatch):
    """What was searched is kept, what was half written is gone, and the same command goes on from there."""
    whole = answer("space.yaml", "--topology", "racks.yaml", "-o", "whole")
    with monkeypatch.context() as patched:
        patched.setattr("dlcalc.results.placed.pq.write_table", _interrupt)
        run("space.yaml", "--topology", "racks.yaml", exit_code=130)
    assert not open_result("results/placed").is_complete
    assert list(Path("results/placed/_placed").iterdir()) == []
    (Path("results/placed/_placed") / ".plans.parquet.1.partial").write_bytes(b"killed")

    monkeypatch.setattr("dlcalc.workflows.sweep._blocks", lambda *_, **__: pytest.fail("searched again"))
    resumed = answer("space.yaml", "--topology", "racks.yaml")
    assert timeless(resumed) | {"result": ""} == timeless(whole) | {"result": ""}
    assert open_result("results/placed").placed_plans() == open_result("whole").placed_plans()
    assert len(list(Path("results/placed/_placed").iterdir())) == 2


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("keep", ["1", "5", "pareto"])
def test_meshes_that_the_result_does_not_hold_are_placed_all_the_same(keep):
    """The best mesh on paper is not the best one on these nodes, and alone among the best rows that are kept."""
    few = answer("space.yaml", "--topology", "racks.yaml", "--keep", keep, "-o", "few")["scenarios"][0]["placed"]
    every = answer("space.yaml", "--topology", "racks.yaml", "--keep", "all", "-o", "every")["scenarios"][0]["placed"]
    for name in ("plan_index", "placed_step_time_s"):
        assert few["best"][0][name] == every["best"][0][name]
    assert few["n_meshes"] == every["n_meshes"]
    assert few["n_faster_on_paper"] == 0


def test_a_plan_beyond_those_kept_is_not_said_to_be_slower_than_a_thousand():
    """``--keep 1`` knows one rank: the best as placed is 9th or so on paper, which nobody counted."""
    said = run("space.yaml", "--topology", "racks.yaml", "--keep", "1").stdout
    assert "not among the best 1,000" not in said
    assert "not among the best kept on paper" in " ".join(said.split())


def test_keeping_few_rows_still_places_the_best():
    few = answer("space.yaml", "--topology", "racks.yaml", "--keep", "500", "-o", "few")["scenarios"][0]["placed"]
    every = answer("space.yaml", "--topology", "racks.yaml", "--keep", "all", "-o", "every")["scenarios"][0]["placed"]
    assert few["best"] == every["best"]


@pytest.mark.parametrize("table", ["plans.parquet", "placements.parquet"])
def test_damaged_tables_are_named(table):
    run("space.yaml", "--topology", "racks.yaml")
    file = Path("results/placed/_placed") / table
    whole = file.read_bytes()
    open_result("results/placed").verify()

    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ResultError, match=rf"_placed/{table}: damaged"):
        open_result("results/placed")
    middle = len(whole) // 3
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ResultError, match=rf"_placed/{table}: damaged"):
        open_result("results/placed").verify()
    file.unlink()
    with pytest.raises(ResultError, match=rf"_placed/{table}: missing"):
        open_result("results/placed")


# --- 3dtrn ------------------------------------------------------------------------------------------------------


def test_3dtrn_shows_the_placed_plan_with_the_same_numbers():
    run("space.yaml", "--topology", "racks.yaml")
    rows = open_result("results/placed").placed_plans()
    for rank in (1, len(rows)):
        facts = json.loads(run("results/placed", "--rank", rank, "--json", door=training_3d.main).stdout)
        assert facts["results"]["iteration_s"] == pytest.approx(rows[rank - 1]["placed_step_time_s"], rel=1e-12)
        assert facts["plan"]["dp"] == rows[rank - 1]["dp"]
    text = run("results/placed", "--rank", 1, door=training_3d.main).stdout
    assert "placed on racks.yaml" in text
    assert f"without placement rank {rows[0]['rank']}" in " ".join(text.split())

    beyond = run("results/placed", "--rank", len(rows) + 1, door=training_3d.main, exit_code=2)
    assert f"has {len(rows)} placed plans" in beyond.stderr


def test_3dtrn_drops_the_placement_of_a_plan_that_would_sit_elsewhere():
    run("space.yaml", "--topology", "racks.yaml")
    moved = run("results/placed", "--what-if", "tp=4", door=training_3d.main).stdout
    assert "what if: its groups would sit elsewhere; estimated without placement" in " ".join(moved.split())
    stays = run("results/placed", "--what-if", "micro_batch=1", door=training_3d.main).stdout
    assert "sit elsewhere" not in stays


# --- what is printed --------------------------------------------------------------------------------------------


def test_the_report_has_both_rankings_and_says_why():
    done = run("space.yaml", "--topology", "racks.yaml", "--top", 5)
    text = " ".join(done.stdout.split())
    assert done.stderr == ""
    for part in (
        "Fastest: dp128",
        "Placed: tp2 dp64",
        "16 of 64 nodes of racks.yaml are free",
        "plans as placed",
        "The order changed. First on paper: dp128",
        "its data-parallel rings get 25 % of the NIC",
        "grad reduce +",
        "1 ring of 16 nodes takes 48 hops (proved optimal)",
        "placed in ",
    ):
        assert part in text, part


def test_the_report_says_that_nothing_changed():
    text = " ".join(run("space.yaml", "--topology", "flat.yaml").stdout.split())
    assert "The order is the same with and without placement. Placing costs it less than 0.1 %." in text


# --- what is asked, and what is wrong with it -------------------------------------------------------------------


def test_a_space_file_names_the_fabric_beside_it(tmp_path):
    folder = tmp_path / "studies" / "fabrics"
    folder.mkdir(parents=True)
    (folder / "racks.yaml").write_text(racks())
    study = tmp_path / "studies" / "s.yaml"
    study.write_text(SPACE + "topology: {source: fabrics/racks.yaml, meshes: 3, exclude: [r0n0]}\n")
    Path("racks.yaml").unlink()

    placed = answer(study, exit_code=3)["scenarios"][0]["placed"]
    assert placed["why_none"] == "it needs 16 nodes and 15 are free"
    study.write_text(SPACE + "topology: {source: fabrics/racks.yaml, meshes: 3}\n")
    assert answer(study, "--overwrite")["scenarios"][0]["placed"]["n_meshes"] == 3
    assert "placed" not in answer(study, "--no-place", "--resume")["scenarios"][0]


@pytest.mark.parametrize(
    ("line", "options", "told"),
    [
        ("topology: rack.yaml", (), "space.yaml:8: topology: rack.yaml: no such file; did you mean racks.yaml"),
        (
            "topology: {source: racks.yaml, mesh: 3}",
            (),
            "space.yaml:8: topology.mesh: no such key; did you mean meshes",
        ),
        ("topology: {source: racks.yaml, exclude: r9n0}", (), "space.yaml:8: topology.exclude: r9n0: no such node; "),
        ("topology: broken.yaml", (), "broken.yaml:1: switches[0].node: no such key; did you mean nodes?"),
        ("", ("--topology", "rack.yaml"), "rack.yaml: no such file; did you mean racks.yaml"),
        ("", ("--place",), "--place: give the fabric, with --topology FILE or topology: in space.yaml"),
        ("", ("--place-meshes", "3"), "--place-meshes: give the fabric, with --topology FILE or topology: in"),
        ("topology: racks.yaml", ("--sort", "memory"), "--sort memory: placed plans are ranked by step time; "),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_is_searched(line, options, told):
    Path("space.yaml").write_text(SPACE + line + "\n")
    Path("broken.yaml").write_text("switches: [{switch: a, node: b}]\n")
    done = run("space.yaml", *options, exit_code=2)
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 1
    assert not Path("results").exists()


def test_scenarios_that_cannot_be_placed_say_why_and_the_others_are():
    Path("space.yaml").write_text(SPACE.replace("devices: 128", "devices: [8, 128, 256]"))
    one, fitting, large = answer("space.yaml", "--topology", "racks.yaml")["scenarios"]
    assert one["placed"]["why_none"] == "one node holds it"
    assert fitting["placed"]["why_none"] is None
    assert large["placed"]["why_none"] == "it needs 32 nodes and 16 are free"
    assert large["best"]
    report = " ".join(run("space.yaml", "--topology", "racks.yaml").stdout.split())
    assert "Placed: nothing, since it needs 32 nodes and 16 are free" in report
    assert (
        run("results/placed", "--scenario", "256", door=training_3d.main).stdout.count("nothing of this scenario") == 1
    )


def test_where_nothing_can_be_placed_the_search_is_kept_and_the_exit_code_says_so():
    Path("space.yaml").write_text(SPACE.replace("devices: 128", "devices: 256"))
    done = run("space.yaml", "--topology", "racks.yaml", exit_code=3)
    assert done.stderr.startswith(
        "error: nothing could be placed on racks.yaml: llama3-8b on 256 h100, bf16: it needs 32"
    )
    assert open_result("results/placed").is_complete


def test_machines_of_another_size_than_the_hardwares_nodes_are_refused():
    Path("small.yaml").write_text("node_defaults: {n_devices: 4}\nswitches: [{switch: s, nodes: 'n[0-63]'}]\n")
    done = run("space.yaml", "--topology", "small.yaml", exit_code=3)
    assert "have 4 devices, a node of the hardware 8; no NVLink domains are named" in done.stderr


def test_meshes_that_do_not_fill_nodes_are_counted_with_their_reason():
    """Twelve nodes of eight: a stage of 12 devices neither fills nodes nor divides one."""
    Path("space.yaml").write_text(SPACE.replace("devices: 128", "devices: 96").replace("512", "768"))
    placed = answer("space.yaml", "--topology", "racks.yaml")["scenarios"][0]["placed"]
    assert placed["n_meshes"] > 0
    assert any("neither fills nodes of 8 nor divides one" in reason for reason in placed["not_placed"])
