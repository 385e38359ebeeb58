"""Slurm's files, read as they are written; tests/integration/test_topology_slurm.py asks a real controller."""

import pytest

from dlcalc.errors import DlcalcError
from dlcalc.topology.sources.hostlist import expand
from dlcalc.topology.sources.read import read_fabric

CONF = """\
# two islands
SwitchName=core Switches=s[0-1]
switchname=s0 NODES=n[0-1],n07 # a comment
SwitchName=s1 LinkSpeed=400 \\
    Nodes=n[2-3]

SwitchName=island Nodes=m0
"""

TREE = """\
- topology: old
  flat: true
- topology: gpu
  cluster_default: true
  tree:
    switches:
      - {switch: core, children: "s[0-1]"}
      - {switch: s0, nodes: "n[0-1],n07"}
      - {switch: s1, nodes: "n[2-3]"}
      - {switch: island, nodes: m0}
"""

BLOCKS = """\
- topology: gpu
  block:
    block_sizes: [2, 4]
    blocks:
      - {block: b1, nodes: "n[0-1]"}
      - {block: b2, nodes: "n[2-3]"}
      - {block: b3, nodes: "n[4-5]"}
"""

CHAINS = {
    "n0": ("s0", "core"),
    "n1": ("s0", "core"),
    "n07": ("s0", "core"),
    "n2": ("s1", "core"),
    "n3": ("s1", "core"),
    "m0": ("island",),
}
IN_BLOCKS = {
    **dict.fromkeys(["n0", "n1"], ("b1", "b1..b2", "all blocks")),
    **dict.fromkeys(["n2", "n3"], ("b2", "b1..b2", "all blocks")),
    **dict.fromkeys(["n4", "n5"], ("b3", "all blocks")),
}


def fabric(tmp_path, text, name="topology.conf", **options):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_fabric(str(tmp_path / name), **options)


def chains(tmp_path, text, name="topology.conf"):
    return {node.name: node.switches for node in fabric(tmp_path, text, name).nodes}


def test_tree_in_both_kinds_of_file(tmp_path):
    assert chains(tmp_path, CONF) == CHAINS
    assert chains(tmp_path, TREE, "topology.yaml") == CHAINS
    read = fabric(tmp_path, TREE, "topology.yaml", node_devices=4)
    assert read.source.endswith("topology.yaml (gpu)")
    assert read.remarks[0] == "the topology gpu was read; old not"
    assert {node.n_devices for node in read.nodes} == {4}


def test_blocks_in_both_kinds_of_file(tmp_path):
    conf = "BlockName=b1 Nodes=n[0-1]\nBlockName=b2 Nodes=n[2-3]\nblockname=b3 Nodes=n[4-5]\nBlockSizes=2,4\n"
    assert chains(tmp_path, conf) == IN_BLOCKS
    assert chains(tmp_path, BLOCKS, "topology.yaml") == IN_BLOCKS
    assert chains(tmp_path, "BlockName=b1 Nodes=n0") == {"n0": ("b1",)}


def test_what_scontrol_prints_can_be_replayed(tmp_path):
    """Form of the lines as slurmctld 22.05.8 prints them, fields without a role here left out."""
    printed = (
        "SwitchName=core Level=1 LinkSpeed=1 Nodes=n[0-7] Switches=s[0-1]\n"
        "SwitchName=s0 Level=0 LinkSpeed=1 Nodes=n[0-3]\n"
        "SwitchName=s1 Level=0 LinkSpeed=1 Nodes=n[4-7]\n"
        "NodeName=n0 Gres=gpu:h100:8(S:0-1) GresUsed=gpu:h100:8(IDX:0-7) NodeHostName=h0 State=ALLOCATED \n"
        "NodeName=n1 Gres=gpu:h100:8 GresUsed=gpu:h100:2 State=MIXED Partitions=p \n"
        "NodeName=n2 Gres=gpu:8 GresUsed=gpu:0 NodeHostName=n2 State=IDLE+DRAIN Reason=bad fan, #12 [root@now]\n"
        "NodeName=n3 Gres=gpu:h100:8 GresUsed=gpu:(null):0(IDX:N/A) State=IDLE Partitions=p \n"
        "NodeName=n4 Gres=gpu:h100:8 State=IDLE* Partitions=p \n"
        "NodeName=n5 Gres=gpu:h100:8 State=IDLE+CLOUD+POWERED_DOWN Partitions=p \n"
        "NodeName=n6 Gres=(null) State=DOWN+NOT_RESPONDING Partitions=p \n"
        "JobId=9 JobName=old JobState=COMPLETED NodeList=n[0-7] \n"
        "JobId=12 JobName=llama-70b JobState=RUNNING Reason=None NodeList=n[0-1] BatchHost=n1\n"
        "JobId=13 JobName=waiting JobState=PENDING NodeList=(null)\n"
    )
    read = fabric(tmp_path, printed, "slurm.txt")
    assert {node.name: node.switches for node in read.nodes} == {
        f"n{index}": (f"s{index // 4}", "core") for index in range(8)
    }
    assert [(node.name, node.state, node.job, node.rank, node.why_unusable) for node in read.nodes] == [
        ("n0", "busy", "llama-70b", 0, ""),
        ("n1", "busy", "llama-70b", 1, ""),
        ("n2", "unusable", "", None, "idle+drain: bad fan, #12 [root@now]"),
        ("n3", "free", "", None, ""),
        ("n4", "unusable", "", None, "idle+not_responding"),
        ("n5", "free", "", None, ""),
        ("n6", "unusable", "", None, "down+not_responding"),
        ("n7", "unusable", "", None, "scontrol show nodes does not list it (powered down?)"),
    ]
    assert read.by_name["n0"].host_name == "h0"
    assert [node.n_devices for node in read.nodes[:7]] == [8] * 7
    assert fabric(tmp_path, printed, "slurm.txt", node_devices=4).by_name["n1"].state == "free"  # six are left


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SwitchName=a Switches=b\nSwitchName=b Switches=a Nodes=x", "1: SwitchName: the switch a is above itself"),
        ("SwitchName=a Switches=a Nodes=x", "1: SwitchName: the switch a is above itself"),
        (
            "SwitchName=a Switches=lef\nSwitchName=leaf Nodes=x",
            "1: SwitchName: no switch lef is there; did you mean leaf?",
        ),
        (
            "SwitchName=a Switches=l\nSwitchName=b Switches=l\nSwitchName=l Nodes=x",
            "2: SwitchName: the switch l hangs from a and from b; switches must form a tree",
        ),
        (
            "SwitchName=a Nodes=x\n\nSwitchName=b Nodes=x",
            "3: SwitchName: the node x hangs from a and from b; a node has one closest switch",
        ),
        ("SwitchName=a Nodes=x\nSwitchName=a Nodes=y", "2: SwitchName: the switch a is there twice"),
        ("SwitchName=a Nodes=x\nSwitchNme=b", "2: 'SwitchNme': no such key at the beginning of a line; did you mean"),
        ("SwitchName=a Nods=x", "1: Nods: no such key; did you mean Nodes?"),
        ("SwitchName=a Nodes=x Nodes=y", "1: Nodes: this key is given twice on one line"),
        ("SwitchName=a Nodes=x y", "1: y: must be Key=value, without spaces in the value"),
        ("SwitchName=a \\\n Nodes=x[1", "1: Nodes: x[1 lacks a closing bracket"),
        ("SwitchName=s[0-1] Nodes=x", "1: SwitchName: must be one name, not 's[0-1]'"),
        ("BlockName=b Nodes=x\nBlockSizes=2,6", "2: BlockSizes: 6 must be the first size, 2, times a power of two"),
        ("BlockName=b Nodes=x\nBlockSizes=a", "2: BlockSizes: must be sizes with commas between, such as 4,8, not 'a'"),
        ("BlockName=b Nodes=x\nSwitchName=s Nodes=y", "1: BlockName: switches and blocks are two kinds of topology"),
        ("SwitchName=s Nodes=y\nJobId=1 NodeList=y", "there are jobs but no nodes"),
        ("SwitchName=s", "there are no nodes"),
    ],
)
def test_mistakes_in_text(tmp_path, text, told):
    with pytest.raises(DlcalcError) as error:
        fabric(tmp_path, text)
    assert f"topology.conf:{told}" in str(error.value) or (told[0] == "t" and told in str(error.value))  # of no line
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- topology: a\n  flat: true", "topology.yaml:2: [0].flat: a is flat, which says nothing of nodes"),
        ("- topology: a", "topology.yaml:1: [0]: must have one of tree, block and flat, not none"),
        (
            "- topology: a\n  flat: true\n  tree: {}",
            "topology.yaml:1: [0]: must have one of tree, block and flat, not tree",
        ),
        ("- topology: a\n  tree: {switches: [1]}", "[0].tree.switches[0]: must be a mapping (key: value), not 1"),
        ("- topology: a\n  tree: {switches: [{nodes: a}]}", "[0].tree.switches[0].switch: required key is missing"),
        ("- topology: a\n  tree: {switches: [{switch: a, nodes: 7}]}", "switches[0].nodes: must be text, not 7"),
        ("- topology: a\n  tree: {switches: {}}", "[0].tree.switches: must be a list, not a mapping"),
        ("- topology: a\n  tree: 3", "[0].tree: must be a mapping (key: value), not 3"),
        ("- topology: null\n  tree: 3", "topology.yaml:1: [0].topology: must not be null"),
        (
            "- topology: a\n  block: {block_sizes: [x], blocks: []}",
            "block_sizes[0]: must be a whole number of at least",
        ),
        (
            "- topology: a\n  tree:\n    switches:\n    - {switch: a, nodes: x}\n    - {switch: a}",
            "topology.yaml:5: [0].tree.switches[1].switch: the switch a is there twice",
        ),
        ("- topology: a\n- 7", "topology.yaml:2: [1]: must be a mapping (key: value), not 7"),
    ],
)
def test_mistakes_in_yaml(tmp_path, text, told):
    with pytest.raises(DlcalcError) as error:
        fabric(tmp_path, text, "topology.yaml")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hostlist_that_is_none():
    assert expand("") == []
    for text in ("n[", "n]", "[[0]]", "n[0-99999999999999999999999]", "n[1,]", "a[0-999]b[0-999]c[0-999]", "n[1-2"):
        with pytest.raises(ValueError, match=r"\S"):
            expand(text)
