"""Plain files of a fabric: read, saved and read again, and what each mistake in one says."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.errors import DlcalcError, TopologyError
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.sources.read import exclusions, read_fabric, save_fabric

NESTED = """\
tier_gbit_per_s_per_node: [3200, 1600, null]
node_defaults: {n_devices: 8, instance_type: p5.48xlarge, zone: a}
switches:
  - switch: spine
    switches:
      - switch: leaf0
        nodes: n[0-2]
      - switch: leaf1
        nodes:
          - n3
          - {name: n4, host: ten, state: busy, job: llama, rank: 3}
      - {switch: empty}
  - switch: island
    nodes: [x]
nodes: [lonely, {name: flat, switch: leaf1, zone: b}]
"""


def written(tmp_path, text, name="f.yaml"):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return str(file)


def message(tmp_path, text, name="f.yaml", **options):
    with pytest.raises(DlcalcError) as told:
        read_fabric(written(tmp_path, text, name), **options)
    assert told.value.exit_code == 2
    return str(told.value).replace(f"{tmp_path}/", "")


def test_switches_inside_switches(tmp_path):
    fabric = read_fabric(written(tmp_path, NESTED))
    assert [(node.name, node.switches) for node in fabric.nodes] == [
        ("n0", ("leaf0", "spine")),
        ("n1", ("leaf0", "spine")),
        ("n2", ("leaf0", "spine")),
        ("n3", ("leaf1", "spine")),
        ("n4", ("leaf1", "spine")),
        ("x", ("island",)),
        ("lonely", ()),
        ("flat", ("leaf1", "spine")),
    ]
    assert fabric.tier_bytes_per_s_per_node == (400e9, 200e9, None)
    n4 = fabric.by_name["n4"]
    assert (n4.host_name, n4.state, n4.job, n4.rank, n4.instance_type) == ("ten", "busy", "llama", 3, "p5.48xlarge")
    assert fabric.by_name["flat"].zone == "b"
    assert [node.name for node in fabric.without_data()] == ["lonely"]


def test_the_same_in_json(tmp_path):
    data = {"nodes": [{"name": "a", "switches": ["l", "s"]}, {"name": "b", "switch": "l"}], "parents": {"l": "s"}}
    for name in ("f.json", "f.yaml", "f.txt"):
        fabric = read_fabric(written(tmp_path, json.dumps(data), name))
        assert [node.switches for node in fabric.nodes] == [("l", "s"), ("l", "s")]


def test_node_devices_fill_in_what_the_file_does_not_say(tmp_path):
    file = written(tmp_path, "nodes: [a, {name: b, n_devices: 4}, {name: c, n_devices: 72}]")
    fabric = read_fabric(file, node_devices=16)
    assert [node.n_devices for node in fabric.nodes] == [16, 4, 72]
    assert fabric.by_name["b"].why_unusable == "has 4 devices, not 16"
    assert [node.state for node in fabric.nodes] == ["free", "unusable", "free"]


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["null", "1e12", "on", "~", "#x"]
)
rates = st.none() | st.floats(min_value=1e-300, max_value=1e300) | st.sampled_from([4e11, 1e9 / 3])


@st.composite
def fabrics(draw):
    """Forests of nodes in any order, with chains cut short and every attribute of any text."""
    parents = draw(st.dictionaries(names, st.integers(0, 5), max_size=6))
    switches = list(parents)
    above = {name: switches[index] for place, (name, index) in enumerate(parents.items()) if index < place}
    nodes = []
    for name in draw(st.lists(names, unique=True, max_size=6)):
        chain = [draw(st.sampled_from(switches))] if switches and draw(st.booleans()) else []
        while chain and chain[-1] in above and draw(st.integers(0, 4)):
            chain.append(above[chain[-1]])
        nodes.append(
            FabricNode(
                name=name,
                switches=tuple(chain),
                host=draw(words),
                n_devices=draw(st.integers(1, 72)),
                state=draw(st.sampled_from(["free", "busy", "unusable"])),
                job=draw(words),
                rank=draw(st.none() | st.integers(0, 9)),
                domain=draw(words),
                instance_type=draw(words),
                zone=draw(st.sampled_from(["", "a", "b"])),
                region=draw(words),
                why_unusable=draw(words),
            )
        )
    return Fabric(tuple(nodes), tuple(draw(st.lists(rates, max_size=3))), draw(words), tuple(draw(st.lists(words))))


@settings(max_examples=150)
@given(fabric=fabrics(), suffix=st.sampled_from([".json", ".yaml"]))
def test_a_saved_fabric_is_read_back_identically(tmp_path_factory, fabric, suffix):
    file = tmp_path_factory.mktemp("saved") / f"fabric{suffix}"
    save_fabric(fabric, file)
    if not fabric.nodes:
        with pytest.raises(TopologyError, match="there are no nodes"):
            read_fabric(str(file))
        return
    again = read_fabric(str(file))
    expected = fabric if fabric.source else Fabric(fabric.nodes, fabric.tier_bytes_per_s_per_node, str(file))
    assert again == expected
    assert again.remarks == fabric.remarks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes: [a, a]", "f.yaml:1: nodes[1].name: the node a is there twice"),
        ("nodes:\n- a\n- {name: b, nme: 1}", "f.yaml:3: nodes[1].nme: no such key; did you mean name?"),
        ("nodes:\n- {name: b, rank: -1}", "f.yaml:2: nodes[0].rank: must be at least 0, not -1"),
        ("nodes: 7", "f.yaml:1: nodes: must be text or a list, not 7"),
        ("nodes: [null]", "f.yaml:1: nodes[0]: must be text or a mapping (key: value), not null"),
        ("nodes: n[3-1]", "f.yaml:1: nodes: the range 3-1 in n[3-1] runs backwards"),
        ("nodes: n[0-9999999]", "f.yaml:1: nodes: n[0-9999999] stands for more than 1,000,000 names"),
        (
            "nodes:\n- {name: a, switch: s}\nparents:\n  s: t\n  t: s",
            "f.yaml:4: parents.s: the switch s is above itself; switches must form a tree",
        ),
        (
            "switches:\n- {switch: s, nodes: a}\n- {switch: s, nodes: b}",
            "f.yaml:3: switches[1].switch: the switch s is there twice",
        ),
        (
            "switches:\n- switch: t\n  switches: [{switch: s, nodes: a}]\nparents: {s: u}",
            "f.yaml:4: parents.s: is u here, but s stands inside t",
        ),
        (
            "switches:\n- switch: t\n  nodes:\n  - {name: a, switch: x}",
            "f.yaml:4: switches[0].nodes[0].name: the node a has switch and a place inside t; give one of them",
        ),
        ("nodes: [{name: a, switches: [s, s]}]", "f.yaml:1: nodes[0].switches: a switch is there twice"),
        (
            "nodes: [a]\ntier_gbit_per_s_per_node: [1]\ntier_bytes_per_s_per_node: [1]",
            "f.yaml:2: tier_gbit_per_s_per_node: give this or tier_bytes_per_s_per_node, not both of them",
        ),
        ("nodes: [a]\ntier_gbit_per_s_per_node: [0]", "tier_gbit_per_s_per_node[0]: must be greater than 0"),
        ("nodes: []", "there are no nodes"),
        ("hello: 1", "f.yaml:1: f.yaml: is no topology: it holds keys hello; what is read is"),
        ("42", "f.yaml:1: f.yaml: is no topology: it holds 42; what is read is"),
        ("", "f.yaml: the file is empty"),
        ("nodes: [a", "f.yaml:1: syntax: "),
    ],
)
def test_mistakes_in_yaml(tmp_path, text, told):
    line = message(tmp_path, text)
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"nodes":\n["a",\n"b"', "f.json:3: syntax: not JSON: expecting ',' delimiter; the file ends here, so"),
        ('{"nodes":\n[{"name": "a",\n"rank": "x"}]}', "f.json:3: nodes[0].rank: must be a whole number, not 'x'"),
        ('{"nodes":\n[{"name": "a"},\n{"name": "a"}]}', "f.json:3: nodes[1].name: the node a is there twice"),
        ('{"nodes": ["a"]}\n{"nodes": ["b"]}', "f.json:2: syntax: a second document starts here; a file holds one"),
        ('{"nodes": ["a"],\n "x": {"nodes": 1},\n"nodes": 1}', "f.json:3: syntax: the key 'nodes' is given twice"),
        ("[" * 100_000, "f.json:1: syntax: lists and mappings are nested too deep"),
        ("null", "is no topology: it holds null"),
        ('{"nodes": "\\ud800", "switches": 1}', "f.json:1: switches: must be a list, not 1"),
        ('{"nodes": [' + "1" * 5000 + "]}", "f.json:1: syntax: not JSON: Exceeds the limit"),
    ],
)
def test_mistakes_in_json(tmp_path, text, told):
    line = message(tmp_path, text, "f.json")
    assert told in line
    assert "\n" not in line


def test_switches_nested_without_end(tmp_path):
    nested: dict = {"switch": "s", "nodes": "a"}
    for index in range(200):
        nested = {"switch": f"t{index}", "switches": [nested]}
    told = message(tmp_path, json.dumps({"switches": [nested]}), "f.json")
    assert told == "f.json:1: switches: switches are nested more than 60 deep"


def test_twenty_thousand_mistakes_are_told_quickly(tmp_path):
    text = json.dumps({"nodes": [{"name": 1} for _ in range(20_000)]}, indent=0)
    began = time.perf_counter()
    with pytest.raises(DlcalcError) as told:
        read_fabric(written(tmp_path, text, "f.json"))
    assert time.perf_counter() - began < 10
    lines = str(told.value).splitlines()
    assert lines[0].endswith("f.json:4: nodes[0].name: must be text, not 1; put it in quotes")
    assert lines[-1].endswith("and 19,900 more")


def test_no_file(tmp_path):
    (tmp_path / "topo.yaml").write_text("nodes: a")
    with pytest.raises(DlcalcError, match=r"topo2.yaml: no such file; did you mean .*topo.yaml\?"):
        read_fabric(str(tmp_path / "topo2.yaml"))
    with pytest.raises(DlcalcError, match="is a directory, not a file"):
        read_fabric(str(tmp_path))


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(TopologyError, match=r"cannot be written: no such file or directory"):
        save_fabric(Fabric((FabricNode("a"),)), tmp_path / "nowhere" / "f.yaml")


def test_kinds_and_exclusions_make_nodes_unusable(tmp_path):
    file = written(tmp_path, NESTED)
    fabric = read_fabric(file, zone="a", exclude=["n[0-1]", "ten", "x"])
    why = {node.name: node.why_unusable for node in fabric.nodes if node.state == "unusable"}
    assert why == {"flat": "zone b, not a", "n0": "excluded", "n1": "excluded", "x": "excluded"}
    assert fabric.by_name["n4"].state == "busy"  # its job runs on
    assert len(read_fabric(file, instance_type="p5*").candidates()) == 6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"zone": "c"}, "no node is of zone c; there are a (7), b (1)"),
        ({"region": "r"}, "no node says its region, so r cannot be chosen"),
        ({"exclude": ["n33"]}, "--exclude n33: no such node; did you mean n3?"),
        ({"exclude": ["n[0-9]"]}, "--exclude n5: no such node; f.yaml has 8 nodes, none so"),
        ({"exclude": ["n[0"]}, "--exclude n[0: n[0 lacks a closing bracket"),
        ({"exclude": ["qqqqqq"]}, "--exclude qqqqqq: no such node; f.yaml has 8 nodes, none so"),
        ({"job_prefix": "lama"}, "no job begins with lama; did you mean llama?"),
        ({"job_prefix": "qqq"}, "no job begins with qqq; there are llama"),
    ],
)
def test_what_is_asked_for_must_be_there(tmp_path, options, told):
    assert told in message(tmp_path, NESTED, **options)


def test_a_job_must_run_where_one_is_asked_for(tmp_path):
    assert read_fabric(written(tmp_path, NESTED), job_prefix="lla").of_job("lla")[0].name == "n4"
    assert "no node says which job it holds" in message(tmp_path, "nodes: a", job_prefix="x")


def test_exclusions_come_from_files_too(tmp_path):
    file = written(tmp_path, "# broken\nn1  # fan\n\nn[2-3],n5 i-0\n", "bad.txt")
    assert exclusions(["n9", f"@{file}"]) == {"n9", "n1", "n[2-3],n5", "i-0"}
    with pytest.raises(DlcalcError, match="no such file"):
        exclusions([f"@{tmp_path}/nothing"])
    with pytest.raises(DlcalcError, match="the name of a file is missing after @"):
        exclusions(["@"])
