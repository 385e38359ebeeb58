"""topoassign, topoeval and topoviz on real fabric files: what they say, what they write, and what bad input gets."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlcalc import topoassign, topoeval, topoviz
from dlcalc.costmodel.node_traffic import node_traffic
from dlcalc.topology.fabric import Fabric, FabricNode, spanning_edges
from dlcalc.topology.rings import distance_hops
from dlcalc.topology.sources.read import read_fabric, save_fabric
from dlcalc.workflows.run import open_run
from tests.clos_fabrics import clos, running

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "examples" / "fabrics" / "small.yaml"
LARGE = ROOT / "examples" / "fabrics" / "fragmented_256.yaml"
MIXTRAL = ROOT / "examples" / "mixtral_8x7b.yaml"
FSDP = ROOT / "examples" / "llama3_8b_fsdp.yaml"
COMMANDS = {"topoassign": topoassign.main, "topoeval": topoeval.main, "topoviz": topoviz.main}


def run(command, *arguments, env=None):
    return CliRunner(env=env).invoke(COMMANDS[command], [str(word) for word in arguments], catch_exceptions=False)


def answer(command, *arguments):
    done = run(command, *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(command, *arguments, code=2):
    """The one line that says why not."""
    done = run(command, *arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")


def assigned(*arguments):
    return json.loads(answer("topoassign", *arguments, "--json"))


JOB = ("-t", 8, "-p", 4, "-d", 16)  # 512 devices: 4 rings of 16 nodes


# ---- topoassign ---------------------------------------------------------------------------------------------------


def test_every_rank_has_a_free_node_and_the_hops_are_those_of_the_rings():
    fabric = read_fabric(str(LARGE))
    found = assigned(*JOB, "--topology", LARGE)
    rings = found["rings"]
    assert [len(ring) for ring in rings] == [16] * 4
    order = [name for ring in rings for name in ring]
    assert len(set(order)) == 64
    assert set(order) <= {node.name for node in fabric.candidates()}
    assert found["rank_to_node"] == {str(rank): order[rank // 8] for rank in range(512)}
    walked = sum(distance_hops(fabric, a, b) for ring in rings for a, b in pairwise([*ring, ring[0]]))
    assert found["cost_hops"] == walked == sum(2 * spanning_edges(fabric, ring) for ring in rings)
    assert found["lower_bound_hops"] <= found["cost_hops"]
    assert found["proved_optimal"] == (found["lower_bound_hops"] == found["cost_hops"])
    assert found["job"] | {"tp": 8, "pp": 4, "dp": 16, "node_devices": 8} == found["job"]


def test_the_same_input_gives_the_same_output():
    assert answer("topoassign", *JOB, "--topology", LARGE, "--json") == answer(
        "topoassign", *JOB, "--topology", LARGE, "--json"
    )


def test_the_text_says_how_good_it_is_and_who_is_no_candidate():
    text = answer("topoassign", *JOB, "--topology", LARGE)
    assert re.search(r"\d+ hops over 4 rings: (proved to be the best|no placement has less than \d+ hops)", text)
    assert "tp8 pp4 dp16: 512 devices on 64 nodes" in text
    assert "256 nodes (104 free, 149 busy, 3 unusable)" in text
    assert "down: n045, n142, n167" in text
    assert "hold job-3" not in text
    assert "hold job-3" in answer("topoassign", *JOB, "--topology", LARGE, "-v")


def test_text_fits_a_narrow_terminal_and_has_no_colour_in_a_pipe():
    done = run("topoassign", *JOB, "--topology", LARGE, env={"COLUMNS": "70"})
    assert max(map(len, done.stdout.splitlines())) <= 70
    assert "\x1b" not in done.stdout


def test_all_formats_tell_of_the_same_nodes(tmp_path):
    shown = ("-t", 2, "-p", 2, "-d", 8, "--topology", SMALL)  # 32 devices: 2 rings of 2 nodes
    done = run("topoassign", *shown, "--rank-cores", 12, "--out", tmp_path / "deep" / "launch")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"launch files in {tmp_path / 'deep' / 'launch'}\n"
    texts = {file.name: file.read_text() for file in (tmp_path / "deep" / "launch").iterdir()}
    placed = json.loads(texts["placement.json"])
    order = [name for ring in placed["rings"] for name in ring]
    assert texts["nodes.txt"].split() == order == placed["hosts"]
    assert texts["slurm_hostfile.txt"].split() == [name for name in order for _ in range(8)]
    assert re.findall(r"rank \d+=(\S+) slot=", texts["rankfile.txt"]) == texts["slurm_hostfile.txt"].split()
    assert re.findall(r"^(\S+)\) node_rank=(\d+)", texts["torchrun.sh"], re.MULTILINE) == [
        (name, str(rank)) for rank, name in enumerate(order)
    ]
    assert re.findall(r'"values": \["(\S+)"\]', texts["kubernetes_affinity.yaml"]) == order
    for form, file in (
        ("nodes", "nodes.txt"),
        ("rankfile", "rankfile.txt"),
        ("slurm", "slurm_hostfile.txt"),
        ("torchrun", "torchrun.sh"),
        ("kubernetes", "kubernetes_affinity.yaml"),
        ("json", "placement.json"),
    ):
        assert answer("topoassign", *shown, "--rank-cores", 12, "--format", form) == texts[file]


def test_a_plan_gives_the_degrees_and_its_step_time():
    found = assigned("--plan", MIXTRAL, "--topology", LARGE)
    assert found["job"] | {"tp": 1, "pp": 4, "dp": 32, "ep": 8} == found["job"]
    assert found["plan"] == "mixtral_8x7b"
    assert found["step_time_s"] > found["unplaced_step_time_s"] > 0
    assert "per step on these nodes" in answer("topoassign", "--plan", MIXTRAL, "--topology", LARGE)


def test_a_row_of_a_search_is_a_plan(tmp_path):
    from dlcalc.dlcalc_search import main as search

    (tmp_path / "small.yaml").write_text(
        "study: small\nmodel: llama3-8b\nhardware: h100\ncluster: {devices: [16]}\n"
        "recipe: {seq_len: 8192, global_batch: 128, precision: bf16, framework: megatron}\n"
        "space: {micro_batch: [1], recompute: [none, full]}\n"
    )
    done = CliRunner().invoke(search, [str(tmp_path / "small.yaml"), "-o", str(tmp_path / "found"), "--json"])
    best = json.loads(done.stdout)["scenarios"][0]["best"]
    for rank in (1, 3):
        job = assigned("--plan", tmp_path / "found", "--rank", rank, "--topology", SMALL)["job"]
        assert {name: job[name] for name in ("tp", "pp", "dp", "cp")} == {
            name: best[rank - 1][name] for name in ("tp", "pp", "dp", "cp")
        }
    assert "10000" in refused("topoassign", "--plan", tmp_path / "found", "--rank", 10000, "--topology", SMALL)


def test_time_on_the_links_is_that_of_the_plan():
    """Rings of 4 nodes fit under leaves: data parallel traffic at the rate of tier 0. Stages meet higher up."""
    found = assigned("--plan", MIXTRAL, "--topology", LARGE, "--objective", "seconds")
    by_hops = assigned("--plan", MIXTRAL, "--topology", LARGE)
    assert found["objective"] == "seconds"
    assert found["lower_bound"] <= found["cost"]
    assert found["step_time_s"] <= by_hops["step_time_s"]
    sent = node_traffic(open_run(MIXTRAL).resolve({}).estimate())
    leaf, spine, core = read_fabric(str(LARGE)).tier_bytes_per_s_per_node
    ways = [sent.dp_bytes / dp + sent.pp_bytes / pp for dp in (leaf, spine, core) for pp in (leaf, spine, core)]
    assert any(found["cost"] == pytest.approx(way, rel=1e-9) for way in ways)
    assert found["cost"] <= sent.dp_bytes / leaf + sent.pp_bytes / core
    assert "chosen for time on the links" in answer(
        "topoassign", "--plan", MIXTRAL, "--topology", LARGE, "--objective", "seconds"
    )


def test_a_plan_that_would_be_faster_by_another_objective_is_told(tmp_path):
    """Four racks of 4 free nodes for four stages, and a fifth in a pod of its own, which equal hops do not rule out."""
    pods = [f"{{switch: pod{pod}, switches: [{{switch: r{pod}, nodes: 'r{pod}n[0-3]'}}]}}" for pod in range(3)]
    near = ", ".join(f"{{switch: s{rack}, nodes: 's{rack}n[0-3]'}}" for rack in range(4))
    tree = f"[{{switch: core, switches: [{', '.join(pods)}, {{switch: near, switches: [{near}]}}]}}]"
    (tmp_path / "f.yaml").write_text(f"tier_gbit_per_s_per_node: [3200, 3200, 200]\nswitches: {tree}\n")
    by_hops = assigned("--plan", MIXTRAL, "--topology", tmp_path / "f.yaml")
    by_time = assigned("--plan", MIXTRAL, "--topology", tmp_path / "f.yaml", "--objective", "seconds")
    assert by_hops["cost_hops"] == by_time["cost_hops"] == 32
    assert by_time["step_time_s"] < 0.99 * by_hops["step_time_s"]
    (said,) = by_hops["remarks"]
    assert said.startswith(f"--objective seconds places it where a step takes {by_time['step_time_s']:.4g} s")
    assert by_time["remarks"] == []


def test_seconds_need_rates(tmp_path):
    (tmp_path / "f.yaml").write_text(re.sub(r"tier_gbit.*\n", "", LARGE.read_text()))
    said = refused("topoassign", "--plan", MIXTRAL, "--topology", tmp_path / "f.yaml", "--objective", "seconds")
    assert "the bandwidth of tier 0 is not known" in said


def test_the_longest_ring_can_be_what_counts():
    found = assigned(*JOB, "--topology", LARGE, "--objective", "worst-ring")
    fabric = read_fabric(str(LARGE))
    assert found["cost"] == max(2 * spanning_edges(fabric, ring) for ring in found["rings"])
    assert found["lower_bound_hops"] is None


def test_machines_of_one_rack_are_placed_one_by_one(tmp_path):
    """A plan's node is a rack: ranks go to its machines, 17 of them free; tensor parallel pairs stay in one."""
    machines = (
        FabricNode(f"r{rack}n{n:02}", (f"leaf{rack}", "top"), n_devices=4, domain=f"rack{rack}")
        for rack in range(3)
        for n in range(17)
    )
    save_fabric(Fabric(tuple(machines)), tmp_path / "f.yaml")
    (tmp_path / "run.yaml").write_text(
        "model: llama3-70b\nhardware: gb200_nvl72\nplan: {tp: 8, pp: 2, dp: 9, micro_batch: 1, recompute: full}\n"
        "recipe: {seq_len: 8192, global_batch: 144, framework: megatron}\n"
    )
    found = assigned("--plan", tmp_path / "run.yaml", "--topology", tmp_path / "f.yaml")
    assert found["job"]["node_devices"] == 4
    assert [len(ring) for ring in found["rings"]] == [18, 18]
    for ring in found["rings"]:
        assert all(a[:2] == b[:2] for a, b in zip(ring[::2], ring[1::2], strict=True))
    assert found["step_time_s"] is None
    assert "no step times: the plan's nodes have 72 devices, these 4" in found["remarks"][-1]


def test_excluded_nodes_are_not_used(tmp_path):
    first = assigned("-t", 8, "-p", 1, "-d", 4, "--topology", SMALL)["rings"][0]
    (tmp_path / "broken.txt").write_text(f"# seen to be slow\n{first[1]}\n\n{first[2]}  # twice\n")
    found = assigned(
        *("-t", 8, "-p", 1, "-d", 4, "--topology", SMALL),
        *("--exclude", first[0], "--exclude", f"@{tmp_path / 'broken.txt'}"),
    )
    assert not set(found["rings"][0]) & set(first[:3])
    assert found["fabric"]["unusable"] | dict.fromkeys(first[:3], "excluded") == found["fabric"]["unusable"]


def test_a_saved_fabric_gives_the_same_answer(tmp_path):
    done = assigned(*JOB, "--topology", LARGE, "--save", tmp_path / "kept.yaml")
    again = assigned(*JOB, "--topology", tmp_path / "kept.yaml")
    assert again == done


def test_the_environment_may_name_the_fabric():
    done = run("topoassign", "-t", 8, "-p", 1, "-d", 4, "--json", env={"DLCALC_TOPOLOGY": str(SMALL)})
    assert json.loads(done.stdout)["fabric"]["source"] == "a small cluster"


def test_nodes_have_as_many_devices_as_the_fabric_says(tmp_path):
    (tmp_path / "f.yaml").write_text("node_defaults: {n_devices: 4}\nswitches: [{switch: leaf, nodes: 'n[0-7]'}]\n")
    assert assigned("-t", 4, "-p", 1, "-d", 4, "--topology", tmp_path / "f.yaml")["job"]["node_devices"] == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-t", 8, "-p", 4), "--dp missing: give --tp, --pp and --dp, or --plan"),
        ((), "--tp and --pp and --dp missing"),
        (("-t", 8, "--plan", MIXTRAL), "--tp and --plan both say the degrees"),
        (("-t", 8, "-p", 4, "-d", 16, "--rank", 2), "--rank picks a plan: give --plan as well"),
        (("-t", 3, "-p", 1, "-d", 1), "tp x cp x dp x pp = 3 devices do not fill nodes of 8"),
        (("-t", 8, "-p", 1, "-d", 2, "--ep", 3), "ep x etp = 3 must divide the 16 devices"),
        (("-t", 8, "-p", 1, "-d", 2, "--exclude", "n4"), "--exclude n4: no such node; did you mean"),
        (("-t", 8, "-p", 1, "-d", 2, "--exclude", "@nowhere.txt"), "nowhere.txt"),
        (("-t", 8, "-p", 1, "-d", 2, "-i", "p4d.24xlarge"), "no node is of instance type p4d.24xlarge"),
        (("-t", 8, "-p", 1, "-d", 2, "-a", "eu-west-1a"), "no node is of zone eu-west-1a"),
        (("-t", 8, "-p", 1, "-d", 2, "--objective", "seconds"), "--objective seconds weighs traffic"),
        (("--plan", "nowhere"), "nowhere: does not exist"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, words):
    assert words in refused("topoassign", "--topology", SMALL, *arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "f.yaml"),
        ("nodes: []\n", "there are no nodes"),
        ("switches: [{switch: a, nodes: 'n[0-'}]\n", "f.yaml:1"),
        ("switches: [{switch: a, nods: n1}]\n", "did you mean nodes"),
        ("switches: [{switch: a, nodes: n1}, {switch: a, nodes: n2}]\n", "f.yaml:1"),
        ('{"Instances": [{"InstanceId": "i-1", ', "f.yaml"),
        ("nodes: [{name: n1, switch: a, n_devices: many}]\n", "f.yaml:1"),
        ("\x00\x01\x02", "f.yaml"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_fabric_is_told_in_a_line(tmp_path, command, text, words):
    (tmp_path / "f.yaml").write_text(text)
    arguments = {"topoassign": (*JOB,), "topoeval": ("job", *JOB), "topoviz": ("-o", tmp_path / "g.html")}[command]
    assert words in refused(command, *arguments, "--topology", tmp_path / "f.yaml")
    assert not (tmp_path / "g.html").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fabric_that_is_not_there(tmp_path, command):
    arguments = {"topoassign": (*JOB,), "topoeval": ("job", *JOB), "topoviz": ("-o", tmp_path / "g.html")}[command]
    assert "nowhere.yaml" in refused(command, *arguments, "--topology", tmp_path / "nowhere.yaml")


def test_too_few_free_nodes_are_told_with_their_number():
    said = refused("topoassign", "-t", 8, "-p", 4, "-d", 100, "--topology", LARGE, code=3)
    assert "needs 400 nodes" in said
    assert "104 of 256 are free" in said


def test_nodes_that_are_no_candidates_are_counted_by_reason_where_a_job_does_not_fit(tmp_path):
    """A fabric saved with another zone's filter: its nodes are there, and none of them is free."""
    (tmp_path / "f.yaml").write_text(
        "switches:\n- {switch: a, nodes: [{name: n1, zone: za}, {name: n2, zone: za}, {name: n3, zone: zb}]}\n"
    )
    answer(
        "topoviz", "--topology", tmp_path / "f.yaml", "-a", "za", "--save", tmp_path / "za.yaml", "-o", tmp_path / "g"
    )
    job = ("-t", 8, "-p", 1, "-d", 3, "--topology", tmp_path / "za.yaml")
    said = refused("topoassign", *job, "-a", "zb", code=3)
    assert "0 of 3 are free, 2 may not be used (zone za, not zb), 1 may not be used (zone zb, not za)" in said


def test_a_fabric_without_nvlink_domains_says_so_to_a_tensor_parallel_group_larger_than_a_node():
    said = refused("topoassign", "-t", 16, "-p", 1, "-d", 1, "--topology", SMALL, code=3)
    assert "every 2 consecutive nodes must share one domain, and no NVLink domain larger than a node is named" in said


ROOTS = """
switches:
- {switch: a, nodes: 'a[0-3]'}
- {switch: b, nodes: 'b[0-3]'}
- {switch: c, switches: [{switch: c1, nodes: 'c[0-3]'}, {switch: c2, nodes: 'd[0-3]'}]}
"""


@pytest.mark.parametrize("objective", ["hops", "worst-ring"])
def test_all_stages_sit_below_one_root_where_it_has_room(tmp_path, objective):
    """Rings of 4 cost 8 hops below any switch; only c can hold both, and nothing joins it to a or b."""
    (tmp_path / "f.yaml").write_text(ROOTS)
    found = assigned("-t", 8, "-p", 2, "-d", 4, "--topology", tmp_path / "f.yaml", "--objective", objective)
    assert {name[0] for ring in found["rings"] for name in ring} == {"c", "d"}
    assert found["proved_optimal"]
    assert found["remarks"] == []


def test_stages_below_roots_that_nothing_joins_are_told(tmp_path):
    (tmp_path / "f.yaml").write_text(ROOTS)
    found = assigned("-t", 8, "-p", 3, "-d", 4, "--topology", tmp_path / "f.yaml")
    assert found["remarks"] == ["pipeline stages sit below switches that nothing known joins: a, b, c"]


def test_two_formats_at_once_are_refused():
    done = run("topoassign", "-t", 8, "-p", 1, "-d", 2, "--topology", SMALL, "--json", "--format", "slurm")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "give --json or --format slurm, not both" in done.stderr


def test_nodes_without_topology_data_are_named_and_never_used(tmp_path):
    (tmp_path / "f.yaml").write_text("switches: [{switch: leaf, nodes: 'n[0-3]'}]\nnodes: [lost-1, lost-2]\n")
    found = assigned("-t", 8, "-p", 1, "-d", 4, "--topology", tmp_path / "f.yaml")
    assert found["fabric"]["without_topology_data"] == ["lost-1", "lost-2"]
    assert "without topology data: lost-1, lost-2" in answer(
        "topoassign", "-t", 8, "-p", 1, "-d", 4, "--topology", tmp_path / "f.yaml"
    )
    said = refused("topoassign", "-t", 8, "-p", 1, "-d", 6, "--topology", tmp_path / "f.yaml", code=3)
    assert "lost-1, lost-2" in said


def test_a_fabric_is_no_plan():
    done = run("topoassign", "--plan", SMALL, "--topology", SMALL)
    assert done.exit_code == 2
    assert "small.yaml:3: model: required key is missing" in done.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    said = refused("topoassign", "-t", 8, "-p", 1, "-d", 4, "--topology", SMALL, "--out", tmp_path / "file" / "launch")
    assert "cannot be made" in said


# ---- topoeval -----------------------------------------------------------------------------------------------------


def evaluated(*arguments):
    return json.loads(answer("topoeval", *arguments, "--json"))


def test_hops_of_a_job_are_counted_by_hand():
    """Every node's successor is under the other spine, 6 hops away: 8 x 6 = 48. In the best order on the same nodes the
    tour spans 8 nodes, 4 leaves and 2 spines: 2 x 14. Two whole leaves under one spine would do with 2 x (8 + 2)."""
    found = evaluated("llama-8b", "-t", 8, "-p", 1, "-d", 8, "--topology", SMALL)
    assert (found["cost_hops"], found["best_on_own"]["cost_hops"], found["best_on_free"]["cost_hops"]) == (48, 28, 20)
    assert found["best_on_free"]["proved_optimal"]
    assert found["best_on_own"]["extra_fraction"] == pytest.approx(20 / 28)
    assert found["nodes_to_move"] == 4  # those of the job under spine-2
    (kind,) = found["groups"].items()  # no experts, no pipeline, and tensor parallel groups stay in a node
    assert kind[0] == "dp"
    assert (kind[1]["n_groups"], kind[1]["total_hops"], kind[1]["mean_hops"]) == (8, 384, 48)
    assert (kind[1]["best_on_own_hops"], kind[1]["best_on_free_hops"]) == (8 * 28, 8 * 20)
    assert found["step_time"] is None


def test_a_plan_says_what_the_placement_costs():
    found = evaluated("llama-8b", "--plan", FSDP, "--topology", SMALL)
    step = found["step_time"]
    assert step["best_on_free_s"] < step["best_on_own_s"] < step["actual_s"]
    text = answer("topoeval", "llama-8b", "--plan", FSDP, "--topology", SMALL)
    assert "best on the free cluster" in text


def test_a_running_job_is_measured_though_its_tensor_parallel_groups_share_no_known_domain():
    """It runs, so it is not told that it does not fit; llama-8b sits on 8 nodes of 8 devices."""
    measured = json.loads(answer("topoeval", "llama", "-t", 16, "-p", 1, "-d", 4, "--topology", SMALL, "--json"))
    within = json.loads(answer("topoeval", "llama", "-t", 8, "-p", 1, "-d", 8, "--topology", SMALL, "--json"))
    assert measured["groups"]["tp"]["total_hops"] > 0
    for name in ("cost_hops", "rings", "best_on_own", "best_on_free"):
        assert measured[name] == within[name]
    assert any("share no known NVLink domain" in remark for remark in measured["remarks"])


def test_groups_of_every_kind_are_listed():
    found = evaluated("mixtral", "--plan", MIXTRAL, "--topology", LARGE)
    assert set(found["groups"]) == {"dp", "expert_dp", "pp"}  # ep = 8 stays in a node
    assert {kind: group["n_groups"] for kind, group in found["groups"].items()} == {"dp": 4, "expert_dp": 32, "pp": 32}
    spread = evaluated("mixtral", "-t", 1, "-p", 2, "-d", 16, "--cp", 4, "--ep", 16, "--topology", LARGE)
    assert set(spread["groups"]) == {"ep", "dp", "expert_dp", "pp"}
    wide = evaluated("mixtral", "-t", 8, "-p", 2, "-d", 2, "--cp", 4, "--topology", LARGE)
    assert set(wide["groups"]) == {"cp", "dp", "pp"}


def test_without_rates_there_are_no_seconds(tmp_path):
    (tmp_path / "f.yaml").write_text(re.sub(r"tier_gbit.*\n", "", SMALL.read_text()))
    text = answer("topoeval", "llama-8b", "--plan", FSDP, "--topology", tmp_path / "f.yaml")
    assert "no step times: the fabric does not say the rates of its tiers" in text


def test_a_job_that_sits_well_is_told_so(tmp_path):
    save_fabric(running(clos(spines=1, leaves=2, leaf_nodes=4), "neat", 4), tmp_path / "f.yaml")
    text = answer("topoeval", "neat", "-t", 8, "-p", 1, "-d", 4, "--topology", tmp_path / "f.yaml")
    assert text.count("nothing is won") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lama-8b", "-t", 8, "-p", 1, "-d", 8), "no job begins with lama-8b; did you mean llama-8b?"),
        (("llama", "-t", 8, "-p", 1, "-d", 4), "llama-8b runs on 8 nodes, but tp x cp x dp x pp = 32 devices need 4"),
        (("llama", "-t", 8, "-p", 1, "-d", 8, "-n", 4), "8 nodes, but tp x cp x dp x pp = 64 devices need 16 of 4"),
    ],
)
def test_what_cannot_be_measured_is_told(arguments, words):
    assert words in refused("topoeval", *arguments, "--topology", SMALL)


def test_several_jobs_are_not_one():
    assert "6 jobs begin with job-: job-0, job-1, job-2, job-3, job-4 and 1 more" in refused(
        "topoeval", "job-", "-t", 8, "-p", 1, "-d", 4, "--topology", LARGE
    )


def test_ranks_that_are_missing_or_there_twice(tmp_path):
    text = SMALL.read_text()
    (tmp_path / "missing.yaml").write_text(text.replace(", rank: 7", ""))
    shown = answer("topoeval", "llama", "-t", 8, "-p", 1, "-d", 8, "--topology", tmp_path / "missing.yaml")
    assert "the ranks of n14 are not known" in shown
    (tmp_path / "twice.yaml").write_text(text.replace("rank: 7", "rank: 6"))
    assert "job llama-8b: node rank 6 is there twice" in refused(
        "topoeval", "llama", "-t", 8, "-p", 1, "-d", 8, "--topology", tmp_path / "twice.yaml"
    )


# ---- topoviz ------------------------------------------------------------------------------------------------------


def test_a_page_is_written_and_told(tmp_path):
    page = tmp_path / "g.html"
    assert answer("topoviz", "llama", "--topology", SMALL, "-o", page) == (
        f"16 nodes, 7 switches in 3 tiers, 1 ring: open {page} in a browser\n"
    )
    assert page.read_text().startswith("<!doctype html>")
    found = json.loads(answer("topoviz", "llama", "-p", 2, "--topology", SMALL, "-o", page, "--json"))
    assert found["rings"] == {"stage 0": ["n01", "n09", "n02", "n10"], "stage 1": ["n03", "n13", "n05", "n14"]}


def test_every_job_that_begins_so_has_its_rings(tmp_path):
    found = json.loads(answer("topoviz", "job", "--topology", LARGE, "-o", tmp_path / "g.html", "--json"))
    assert sorted(found["rings"]) == [f"job-{n}" for n in range(6)]
    assert sum(len(ring) for ring in found["rings"].values()) == 149 - 16


def test_a_planned_job_is_drawn(tmp_path):
    plan = tmp_path / "placement.json"
    plan.write_text(answer("topoassign", *JOB, "--topology", LARGE, "--json"))
    shown = answer("topoviz", "--placement", plan, "--topology", LARGE, "-o", tmp_path / "g.html", "--json")
    assert list(json.loads(shown)["rings"].values()) == json.loads(plan.read_text())["rings"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not what topoassign --json prints"),
        ("[]", "rings is no list of lists of nodes"),
        ('{"rings": [[]]}', "rings is no list of lists of nodes"),
        ('{"rings": [["n01", 2]]}', "rings is no list of lists of nodes"),
        ('{"rings": [["n011"]]}', "unknown node 'n011'; did you mean n11 or n01"),
        ('{"rings": [["n01"], ["n01"]]}', "node n01 is in two places"),
        ("[" * 100_000, "not what topoassign --json prints"),
    ],
)
def test_a_placement_that_is_none(tmp_path, text, words):
    (tmp_path / "p.json").write_text(text)
    said = refused("topoviz", "--placement", tmp_path / "p.json", "--topology", SMALL, "-o", tmp_path / "g.html")
    assert words in said


def test_what_cannot_be_drawn_is_told(tmp_path):
    page = ("-o", tmp_path / "g.html", "--topology", SMALL)
    assert "which are not 3 equal stages" in refused("topoviz", "llama", "-p", 3, *page)
    assert "give JOB_PREFIX" in refused("topoviz", "-p", 3, *page)
    assert "did you mean llama-8b?" in refused("topoviz", "lama-8b", *page)
    assert "cannot be written" in refused("topoviz", "--topology", SMALL, "-o", tmp_path / "no" / "g.html")
    assert "cannot be read" in refused("topoviz", "--placement", tmp_path / "none.json", *page)
    assert run("topoviz", "llama", "--placement", "p.json", *page).exit_code == 2
