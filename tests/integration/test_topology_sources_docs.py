"""The examples in docs/topology-sources.md are what they say."""

import json
import re
from pathlib import Path

import yaml

from dlcalc.topology.sources.labels import chains_of
from dlcalc.topology.sources.plain import NodeEntry
from dlcalc.topology.sources.read import SERVICES, read_fabric

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "topology-sources.md").read_text(encoding="utf-8")


def examples(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_plain_file(tmp_path):
    file = tmp_path / "hall.yaml"
    file.write_text(examples("yaml")[0])
    fabric = read_fabric(str(file))
    assert len(fabric.nodes) == 32 + 31 + 1 + 2 + 3
    assert fabric.by_name["n031"].switches == ("leaf0", "spine0", "core")
    assert fabric.by_name["n064"].switches == ("leaf1", "spine0", "core")
    assert fabric.chains["n065"] == ("leaf2", "spine1", "core")
    assert fabric.roots == ("core",)
    assert [node.name for node in fabric.without_data()] == ["n066"]
    assert fabric.tier_bytes_per_s_per_node == (400e9, 200e9, None)
    assert [node.name for node in fabric.of_job("llama")] == ["n063"]


def test_every_key_of_a_node_is_told():
    assert all(f"`{key}`" in TEXT for key in NodeEntry.model_fields)


def test_every_service_and_permission_is_told():
    assert all(f"| `{service}` |" in TEXT for service in SERVICES)
    assert all(json.loads(example)["Statement"] for example in examples("json"))
    assert yaml.safe_load(examples("yaml")[1])["rules"][0]["resources"] == ["nodes", "pods"]


def test_every_label_in_the_table_is_read():
    rows = re.findall(r"^\| (`.*`[^|]*) \|", TEXT[TEXT.index("| labels |") :], re.MULTILINE)
    told = [label for row in rows for part in re.findall(r"`([^`]+)`", row) for label in spelled_out(part)]
    assert len(told) > 15
    for label in told:
        full = label if "/" in label else f"oci.oraclecloud.com/{label}"
        value = "uuid.1" if full.endswith("clique") else "x"
        if full.endswith("gce-topology-host"):  # of one node, it is the node
            assert chains_of([{full: value}, {full: value}])[0] == [(value,), (value,)]
        else:
            assert chains_of([{full: value}])[0] == [(value,)], full


def spelled_out(part):
    """``a/{b,c}`` as ``a/b`` and ``a/c``; N as 3."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", part)
    names = [match[1] + name + match[3] for name in match[2].split(",")] if match else [part]
    return [re.sub(r"-N$", "-3", name) for name in names]
