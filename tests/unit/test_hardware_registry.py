from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

from dlcalc import hardware_registry
from dlcalc.errors import DlcalcError, SpecError, UnknownNameError
from dlcalc.hardware_registry import (
    HardwareRegistry,
    HardwareRow,
    hardware_rows,
    hardware_search_path,
    known_hardware,
    load_hardware,
)
from dlcalc.specs.base import Quoted
from dlcalc.specs.hardware import HardwareSpec, Price
from dlcalc.specs.load import config_dir

BUILT_IN = known_hardware()


@pytest.fixture(params=BUILT_IN)
def machine(request) -> HardwareSpec:
    return load_hardware(request.param)


@pytest.fixture
def folder(tmp_path):
    """A user's folder of hardware files."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_text(dedent(text).lstrip("\n"))
        return file

    write.path = tmp_path
    return write


def load_from(folder, name: str) -> HardwareSpec:
    return load_hardware(name, search_path=[folder.path])


# ---- what is built in


def test_the_machines_of_the_manual_are_there():
    expected = """v100_16gb v100_32gb dgx2 a100_40gb a100_80gb a100_pcie_40gb a100_pcie_80gb a800_80gb a10g
        h100 h100_96gb_500w h100_pcie h100_nvl h200 h200_nvl h800 h20 gh200 gh200_144gb gh200_single
        l40s rtx_4090 rtx_pro_6000 b200 b300 gb200_nvl72 gb300_nvl72
        mi210 mi250 mi250x mi300a mi300x mi325x mi350x mi355x
        tpu_v4 tpu_v5e tpu_v5p tpu_v6e tpu_v7 gaudi2 gaudi3 trn1.32xlarge trn1n.32xlarge trn2 trn2u
        p3.16xlarge p3dn.24xlarge p4d.24xlarge p4de.24xlarge p5.48xlarge p5e.48xlarge p5en.48xlarge g6e.48xlarge
        p6-b200.48xlarge p6-b300.48xlarge u-p6e-gb200x72 u-p6e-gb300x72"""
    assert sorted(expected.split()) == BUILT_IN


def test_a_file_is_called_as_its_machine(machine):
    assert (config_dir() / f"{machine.name}.yaml").is_file()


def test_every_alias_finds_its_machine(machine):
    for alias in machine.aliases:
        assert load_hardware(alias) == machine


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("a100_sxm_80gb", "a100_80gb"),
        ("a100_sxm_40gb", "a100_40gb"),
        ("a100", "a100_80gb"),
        ("DGX-A100", "a100_80gb"),
        ("H100-SXM-80GB", "h100"),
        ("dgx_h100", "h100"),
        ("h100_sxm_96gb_hbm2e_500w", "h100_96gb_500w"),
        ("h200_sxm_141gb", "h200"),
        ("h800_sxm_80gb", "h800"),
        ("b200_sxm", "b200"),
        ("b200_sxm_180gb", "b200"),
        ("b300_sxm", "b300"),
        ("GB200", "gb200_nvl72"),
        ("gb300", "gb300_nvl72"),
        ("mi300x_192gb", "mi300x"),
        ("p6_b200.48xlarge", "p6-b200.48xlarge"),
        ("ml.p5.48xlarge", "p5.48xlarge"),
    ],
)
def test_names_ignore_case_and_dashes(asked, name):
    assert load_hardware(asked).name == name


def test_a_calibration_that_was_not_measured_says_so():
    rented = {"p5.48xlarge": "h100", "p5en.48xlarge": "h200", "p4de.24xlarge": "a100_80gb"}
    for name in ("a100_80gb", "h100", "h200", "b200", "b300", "gb200_nvl72", "gb300_nvl72", "l40s", "rtx_pro_6000"):
        assert load_hardware(name).calibration.measured
    for name, device in rented.items():
        assert load_hardware(name).calibration == load_hardware(device).calibration
    for name in (
        "a100_40gb",
        "h800",
        "h100_pcie",
        "gh200",
        "v100_32gb",
        "mi250x",
        "mi300x",
        "tpu_v5p",
        "gaudi3",
        "trn2",
    ):
        calibration = load_hardware(name).calibration
        assert not calibration.measured
        assert calibration.provenance.startswith("not measured on this machine; as on ")


# ---- physics that a mistyped number breaks


def test_peaks_grow_as_precision_shrinks(machine):
    order = ("fp32", "tf32", machine.device.sixteen_bits, "fp8", "nvfp4")
    peaks = [machine.device.peak_tflops[p].value for p in order if p in machine.precisions]
    assert peaks == sorted(peaks)


def test_peaks_are_dense(machine):
    """An 8-bit peak is twice the 16-bit one where there are 8-bit units; a sparse figure would make it four times."""
    peaks = machine.device.peak_tflops
    sixteen = peaks[machine.device.sixteen_bits].value
    assert all(peaks[precision].value == sixteen for precision in ("fp16", "bf16") if precision in peaks)
    for precision in ("fp8", "mxfp8"):
        if precision in peaks:
            ratio = peaks[precision].value / sixteen
            assert ratio == pytest.approx(2, rel=0.03) or ratio == 1


@pytest.mark.parametrize(
    ("name", "n_sms", "flops_per_clock_per_sm", "clock_ghz"),
    [
        ("v100_32gb", 80, 1024, 1.53),  # 8 tensor cores of 64 fused multiply-adds
        ("a100_80gb", 108, 2048, 1.41),  # 4 of 256
        ("h100", 132, 4096, 1.83),
        ("h100_pcie", 114, 4096, 1.62),
        ("rtx_4090", 128, 512, 2.52),
        ("mi250x", 110, 1024, 1.7),
        ("mi300a", 228, 2048, 2.1),
        ("mi300x", 304, 2048, 2.1),
        ("mi350x", 256, 4096, 2.2),
        ("mi355x", 256, 4096, 2.4),
        ("tpu_v4", 2, 4 * 128 * 128 * 2, 1.05),  # 4 arrays of 128 x 128
        ("tpu_v5e", 1, 4 * 128 * 128 * 2, 1.5),
        ("gaudi2", 2, 256 * 256 * 2, 1.65),
        ("gaudi3", 8, 256 * 256 * 2, 1.6),
    ],
)
def test_a_peak_is_units_times_clock(name, n_sms, flops_per_clock_per_sm, clock_ghz):
    device = load_hardware(name).device
    assert device.n_sms.value == n_sms
    peak_tflops = n_sms * flops_per_clock_per_sm * clock_ghz / 1e3
    assert device.peak_tflops[device.sixteen_bits].value == pytest.approx(peak_tflops, rel=3e-3)


@pytest.mark.parametrize(
    ("name", "bus_bits", "memory_ghz"),
    [
        ("v100_32gb", 4096, 0.877),
        ("a100_80gb", 5120, 1.593),
        ("h100", 5120, 2.619),
        ("h100_pcie", 5120, 1.593),
        ("gh200", 6144, 2.619),
        ("b200", 7680, 3.996),
        ("mi250x", 4096, 1.6),
        ("mi300x", 8192, 2.6),
    ],
)
def test_memory_bandwidth_is_bus_times_clock(name, bus_bits, memory_ghz):
    tb_per_s = bus_bits / 8 * memory_ghz * 2 / 1e3  # double data rate
    assert load_hardware(name).device.hbm_tb_per_s.value == pytest.approx(tb_per_s, rel=0.02)


@pytest.mark.parametrize(
    ("name", "node_kw"),
    [("a100_80gb", 6.5), ("h100", 10.2), ("h200", 10.2), ("b200", 14.3), ("b300", 14.0), ("gb200_nvl72", 120.0),
     ("gb300_nvl72", 136.0), ("p5.48xlarge", 10.2)],
)  # fmt: skip
def test_devices_and_their_host_draw_what_the_maker_says_of_the_node(name, node_kw):
    machine = load_hardware(name)
    per_device_w = machine.device.tdp_watts + machine.node.host_w_per_device.value
    assert machine.node.n_devices * per_device_w / 1e3 == pytest.approx(node_kw, rel=1e-3)


def test_memory_is_what_a_driver_would_report(machine):
    device = machine.device
    usable = device.usable_hbm_gib or device.hbm_gib
    ecc = 15 / 16 if machine.name in ("a10g", "l40s", "g6e.48xlarge") else 1.0  # GDDR6 keeps its check bits in itself
    least = 0.96 if machine.name == "tpu_v4" else 0.975  # its runtime reserves 1.25 GiB
    assert least * ecc * device.hbm_gib.value < usable.value <= device.hbm_gib.value
    assert device.hbm_bytes == usable.value * 2**30


def test_links_are_slower_the_farther_they_go(machine):
    memory, node, fabric = machine.device.hbm_bytes_per_s, machine.node, machine.fabric
    assert memory > node.device_bytes_per_s > 2 * fabric.nic_bytes_per_s_per_device
    assert node.link_latency_s < fabric.latency_s


def test_power_and_balance_are_plausible(machine):
    device = machine.device
    assert device.tdp_watts is None or 190 <= device.tdp_watts <= 1500
    host = machine.node.host_w_per_device
    assert host is None or (device.tdp_watts and 0.3 < host.value / device.tdp_watts < 1.5)
    flops_per_byte = device.peak_flops_per_s(device.sixteen_bits) / device.hbm_bytes_per_s
    assert 30 < flops_per_byte < 600  # of 40 devices of five vendors; a slipped unit is off by 8 or 1000


def test_a_newer_device_of_a_line_is_no_slower():
    line = [load_hardware(name).device for name in ("a100_80gb", "h100", "h200", "b200", "gb200_nvl72", "gb300_nvl72")]
    for old, new in pairwise(line):
        assert new.peak_flops_per_s("bf16") >= old.peak_flops_per_s("bf16")
        assert new.hbm_bytes_per_s >= old.hbm_bytes_per_s
        assert new.hbm_bytes >= old.hbm_bytes * 0.999  # H100: 79.10, A100: 79.15


def test_every_number_names_a_place_to_look_it_up(machine):
    sources = [value.source for value in _quoted(machine.device)] + [value.source for value in _quoted(machine.node)]
    sources += [value.source for value in _quoted(machine.fabric)]
    sources += [group.link_gb_per_s.source for group in machine.node.groups]
    assert len(sources) >= 9
    words = ("https://", "derived", "assumed", "PyTorch prints", "XLA prints", "CUDA reports")
    for source in sources:
        assert any(word in source for word in words), source


def _quoted(part) -> list[Quoted]:
    values = [getattr(part, name) for name in type(part).model_fields]
    flat = [item for value in values for item in (value.values() if isinstance(value, dict) else [value])]
    return [item for item in flat if isinstance(item, Quoted)]


# ---- asking for what is not there


def test_an_unknown_name_says_what_was_meant():
    with pytest.raises(UnknownNameError) as error:
        load_hardware("h10")
    assert re.match(r"unknown hardware 'h10'; did you mean .*\bh100\b", str(error.value))


def test_a_name_like_no_other_gets_the_list_of_machines():
    with pytest.raises(UnknownNameError) as error:
        load_hardware("zzzzzzzz")
    assert str(error.value) == f"unknown hardware 'zzzzzzzz'; known: {', '.join(BUILT_IN)}"


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SpecError) as error:
        load_hardware(tmp_path / "mine.yaml")
    assert str(error.value) == f"{tmp_path / 'mine.yaml'}: no such file"


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(SpecError, match="no such folder of hardware files"):
        load_hardware("h100", search_path=[tmp_path / "nowhere"])


# ---- the user's own


def test_a_file_extends_a_built_in_machine(folder):
    file = folder(
        "ours.yaml",
        """
        name: ours
        description: H100 behind our switches
        extends: H100-SXM
        device:
          peak_tflops:
            bf16: {value: 900, source: "our own clocks"}
          l2_mib: null
        fabric:
          nic_gbit_per_s_per_device: {value: 200, source: "measured by us"}
        """,
    )
    h100, ours = load_hardware("h100"), load_hardware(file)
    assert ours == load_from(folder, "OURS")
    assert ours.fabric.nic_gbit_per_s_per_device == Quoted(value=200, source="measured by us")
    assert ours.fabric.latency_us == h100.fabric.latency_us
    assert ours.device.peak_tflops["bf16"].value == 900
    assert ours.device.peak_tflops["fp8"] == h100.device.peak_tflops["fp8"]
    assert ours.device.l2_mib is None
    assert ours.node == h100.node
    assert (ours.family, ours.calibration) == (h100.family, h100.calibration)
    assert (ours.aliases, ours.price) == ((), None)  # a name and an offer are not inherited


def test_a_users_machine_replaces_and_may_extend_the_built_in_one(folder):
    folder(
        "h100.yaml",
        """
        name: h100
        description: ours
        extends: h100
        node: {n_devices: 4}
        """,
    )
    assert load_from(folder, "h100").node.n_devices == 4
    assert load_from(folder, "p5.48xlarge").node.n_devices == 4  # built in, and extends h100
    assert load_hardware("h100").node.n_devices == 8


def test_the_first_folder_wins(tmp_path):
    for index, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        text = f"name: mine\ndescription: d\nextends: h100\nnode: {{n_devices: {index + 1}}}\n"
        (tmp_path / name / "mine.yaml").write_text(text)
    assert load_hardware("mine", search_path=[tmp_path / "two", tmp_path / "one"]).node.n_devices == 2


def test_a_file_may_extend_one_beside_it(folder):
    folder("base.yaml", "name: base\ndescription: d\nextends: b200\nnode: {n_devices: 4}\n")
    file = folder("top.yaml", "name: top\ndescription: d\nextends: ./base.yaml\n")
    assert load_hardware(file).node.n_devices == 4


def test_files_of_another_kind_and_broken_ones_do_not_disturb(folder):
    folder("run.yaml", "model: llama3-8b\nhardware: h100\n")
    folder("broken.yaml", "name: [unclosed\n")
    folder("mine.yaml", "name: mine\ndescription: d\nextends: h100\n")
    assert load_from(folder, "mine").name == "mine"
    assert {"mine", "broken"} <= set(known_hardware([folder.path]))
    assert "run" not in known_hardware([folder.path])
    with pytest.raises(SpecError, match=r"broken\.yaml:\d+: syntax: "):
        load_from(folder, "broken")


def test_the_search_path_is_the_options_then_the_environment():
    environment = {"DLCALC_HARDWARE_PATH": "/b:/c:"}
    assert hardware_search_path([Path("/a")], environment) == (Path("/a"), Path("/b"), Path("/c"))
    assert hardware_search_path([], {}) == ()


def test_only_the_files_a_machine_needs_are_read_in_full(monkeypatch):
    read = []
    load_yaml = hardware_registry.load_yaml
    monkeypatch.setattr(hardware_registry, "load_yaml", lambda file: read.append(file.name) or load_yaml(file))
    load_hardware("p4d")
    assert read == ["p4d.24xlarge.yaml", "a100_40gb.yaml", "a100_80gb.yaml", "a100_80gb.yaml"]  # the last: like


# ---- mistakes in a user's file


def complaint(folder, text: str) -> str:
    """What is said of a file, without its folder."""
    file = folder("mine.yaml", text)
    with pytest.raises(SpecError) as error:
        load_hardware(file, search_path=[folder.path])
    return str(error.value).replace(f"{folder.path}/", "")


def test_a_number_without_a_source_is_refused(folder):
    told = complaint(
        folder,
        """
        name: mine
        description: d
        extends: h100
        device:
          hbm_tb_per_s: {value: 3.0}
        """,
    )
    assert told.startswith("mine.yaml:5: device.hbm_tb_per_s")
    assert "source" in told  # the inherited source is not one of this number


def test_a_bare_number_is_refused(folder):
    told = complaint(
        folder,
        """
        name: mine
        description: d
        extends: h100
        node:
          link_gb_per_s: 450
        """,
    )
    assert told.startswith("mine.yaml:5: node.link_gb_per_s: ")


def test_a_misspelt_key_is_named(folder):
    told = complaint(folder, "name: mine\ndescription: d\nextends: h100\nfabric: {nic_gbit_per_s: 4}\n")
    assert told.startswith("mine.yaml:4: fabric.nic_gbit_per_s: ")
    assert "did you mean nic_gbit_per_s_per_device" in told


def test_more_usable_memory_than_there_is_is_refused(folder):
    told = complaint(
        folder,
        """
        name: mine
        description: d
        extends: h100
        device:
          usable_hbm_gib: {value: 85.9, source: "taken for GB"}
        """,
    )
    assert told == "mine.yaml:4: device: usable_hbm_gib = 85.9 must not exceed hbm_gib = 80"


def test_several_mistakes_are_told_at_once(folder):
    told = complaint(folder, "name: mine\nextends: h100\nfamily: nvidia\nnode: {n_devices: 0}\n")
    assert [line.split(": ")[1] for line in told.splitlines()] == ["description", "family", "node.n_devices"]


def test_a_mistake_in_an_extended_file_is_told_of_that_file(folder):
    folder("base.yaml", "name: base\ndescription: d\nextends: h100\nnode:\n  n_devices: eight\n")
    told = complaint(folder, "name: mine\ndescription: d\nextends: base\n")
    assert told.startswith("base.yaml:5: node.n_devices: ")


def test_mistakes_in_both_files_are_told_together(folder):
    folder("base.yaml", "name: base\ndescription: d\nextends: h100\nnode:\n  n_devices: eight\n")
    told = complaint(folder, "name: mine\ndescription: d\nextends: base\nfamily: nvidia\n").splitlines()
    assert told[0].startswith("mine.yaml:4: family: ")
    assert told[1].startswith("mine.yaml:3: node.n_devices: ")  # where base is named
    assert told[1].endswith("(base.yaml:5)")


@pytest.mark.parametrize("link", ["extends: {}", "extends: h100\ncalibration: {{like: {}}}"])
def test_a_circle_is_told_as_one(folder, link):
    folder("other.yaml", f"name: other\ndescription: d\n{link.format('mine')}\n")
    told = complaint(folder, f"name: mine\ndescription: d\n{link.format('other')}\n")
    assert "take from one another in a circle: mine -> other -> mine" in told


def test_an_unknown_machine_to_extend_is_told_where_it_stands(folder):
    told = complaint(folder, "name: mine\ndescription: d\nextends: h10\n")
    assert told.startswith("mine.yaml:3: extends: unknown hardware 'h10'; did you mean ")


def test_a_machine_may_be_written_as_json(folder):
    file = folder("mine.json", '{"name": "m\\/n", "description": "d", "extends": "h100", "node": {"n_devices": 4}}')
    assert (load_hardware(file).name, load_hardware(file).node.n_devices) == ("m/n", 4)
    file.write_text('{"name": "m\\/n", "description": "d", "extends": "h100", "node": {"n_devices": 0}}')
    with pytest.raises(SpecError, match=r"mine\.json:1: node\.n_devices: "):
        load_hardware(file)


def test_a_list_where_a_machine_should_be_is_refused(folder):
    assert complaint(folder, "- h100\n").startswith("mine.yaml:1: ")
    assert complaint(folder, "name: mine\nextends: [h100]\n").startswith("mine.yaml:2: extends: must be the name")


def test_two_files_with_one_alias_are_refused(folder):
    folder("a.yaml", "name: a\ndescription: d\nextends: h100\naliases: [shared]\n")
    folder("b.yaml", "name: b\ndescription: d\nextends: h100\n\naliases: [own, Shared]\n")
    with pytest.raises(SpecError, match=r"b\.yaml:5: aliases: shared is also a name of a\.yaml in the same folder"):
        load_from(folder, "a")


def test_two_files_of_one_machine_are_refused(folder):
    folder("a.yaml", "name: mine\ndescription: d\nextends: h100\n")
    folder("b.yaml", "description: d\nextends: h100\nname: MINE\n")
    with pytest.raises(SpecError, match=r"b\.yaml:3: name: mine is also a name of a\.yaml"):
        load_from(folder, "mine")


# ---- calibration of a like machine


def test_a_like_machine_lends_its_fractions_but_not_its_proof(folder):
    file = folder(
        "mine.yaml",
        """
        name: mine
        description: d
        extends: mi300x
        calibration:
          like: a100
          memory: {hbm_fraction: 0.5}
        """,
    )
    a100, mine = load_hardware("a100").calibration, load_hardware(file).calibration
    assert mine.matmul == a100.matmul
    assert mine.memory.hbm_fraction == 0.5
    assert mine.memory.launch_us == a100.memory.launch_us
    assert not mine.measured
    assert mine.provenance == f"not measured on this machine; as on a100_80gb: {a100.provenance}"


def test_a_mistake_in_what_is_lent_and_changed_is_told_here(folder):
    text = "name: mine\ndescription: d\nextends: h100\ncalibration:\n  like: a100\n  memory: {hbm_fraction: 1.5}\n"
    assert complaint(folder, text).startswith("mine.yaml:6: calibration.memory.hbm_fraction: ")


def test_the_lenders_switch_is_not_lent():
    """An MI300X takes an H100's fractions, and has no switch that could reduce."""
    lent, own = load_hardware("mi300x").calibration.node_collectives, load_hardware("h100").calibration.node_collectives
    assert own["all_reduce"].in_network_fraction is not None
    assert lent["all_reduce"].in_network_fraction is None
    assert lent["all_reduce"].bus_fraction == own["all_reduce"].bus_fraction
    assert load_hardware("h800").calibration.node_collectives == own  # has the switch


# ---- machines made by a program


def test_an_injected_machine_wins_and_leaves_the_registry_as_it_was():
    mine = load_hardware("h100").model_copy(update={"name": "mine", "aliases": ("p5",), "description": "injected"})
    registry = HardwareRegistry()
    with_mine = registry.with_specs(mine)
    assert with_mine.load("MINE") is mine
    assert with_mine.load("p5") is mine
    assert with_mine.load("p5.48xlarge").name == "p5.48xlarge"
    assert "mine" in with_mine.names()
    assert "mine" not in registry.names()
    with pytest.raises(UnknownNameError):
        registry.load("mine")


def test_the_latest_of_equal_names_wins():
    first = load_hardware("h100").model_copy(update={"description": "first"})
    second = load_hardware("h100").model_copy(update={"description": "second"})
    assert HardwareRegistry().with_specs(first).with_specs(second).load("h100").description == "second"


# ---- the table


def test_the_table_has_a_row_per_machine():
    rows = {row.name: row for row in hardware_rows()}
    assert list(rows) == BUILT_IN
    h100 = rows["h100"]
    assert (h100.hbm_gib, h100.bf16_tflops, h100.fp8_tflops, h100.hbm_tb_per_s) == (79.10, 989.4, 1978.9, 3.35)
    assert rows["v100_32gb"].bf16_tflops is None
    assert (h100.n_devices_per_node, h100.link_gb_per_s, h100.nic_gbit_per_s, h100.measured) == (8, 450, 400, True)
    assert rows["a100_80gb"].fp8_tflops is None
    assert rows["h800"].usd_per_device_hour is None


def test_the_table_of_the_manual_is_this_one():
    """docs/hardware.md lists every machine with the numbers of its file."""
    text = (config_dir().parent / "docs" / "hardware.md").read_text(encoding="utf-8")
    listed = [line for line in text.splitlines() if line.startswith("| `")]
    assert listed == [manual_line(row) for row in hardware_rows()]


def manual_line(row: HardwareRow) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    numbers = [row.hbm_gib, row.hbm_tb_per_s, row.bf16_tflops, row.fp8_tflops, row.n_devices_per_node]
    numbers += [row.link_gb_per_s, row.nic_gbit_per_s, row.usd_per_device_hour]
    cells = [f"`{row.name}`", *map(shown, numbers), "yes" if row.measured else "no"]
    return f"| {' | '.join(cells)} |"


def test_the_examples_of_the_manual_work(folder):
    text = (config_dir().parent / "docs" / "hardware.md").read_text(encoding="utf-8")
    machine, program = re.findall(r"```(?:yaml|python)\n(.*?)```", text, re.DOTALL)
    folder("our_h100.yaml", machine)
    ours = load_from(folder, "cluster-b")
    assert (ours.name, ours.fabric.nic_gbit_per_s_per_device.value) == ("our_h100", 200)
    assert ours.price.usd_per_device_hour == 2.1

    names: dict[str, HardwareRegistry] = {}
    exec(program, names)
    assert names["registry"].load("h100_quad").node.n_devices == 4

    folder("our_h100.yaml", machine.replace("_per_device:", ":"))
    with pytest.raises(SpecError) as error:
        load_from(folder, "our_h100")
    assert str(error.value).replace(f"{folder.path}/", "") in " ".join(text.split())


def test_prices_carry_a_day():
    with pytest.raises(ValueError, match="date"):
        Price(usd_per_device_hour=2.0, date="last week", source="somewhere over")
    for row in hardware_rows():
        assert row.usd_per_device_hour is None or 0.5 < row.usd_per_device_hour < 25


def test_every_error_is_the_users_to_read():
    assert issubclass(SpecError, DlcalcError)
    assert issubclass(UnknownNameError, DlcalcError)


def test_a_device_without_flash_attention_stores_its_scores():
    """Volta: Megatron's masked softmax, unless a kernel that exists is asked for; others keep their trainer's."""
    from dlcalc.specs.framework_registry import load_framework
    from dlcalc.specs.recipe import Recipe

    def kernel(machine, attention):
        profile = load_framework("megatron", {"attention": attention})
        recipe = Recipe(seq_len=2048, global_batch=8, precision="fp16", framework=profile)
        return recipe.on(load_hardware(machine)).framework.attention

    assert kernel("v100_32gb", "te_flash") == kernel("dgx2", "flash2") == "megatron_fused"
    assert kernel("v100_32gb", "flash1") == "flash1"
    assert kernel("a100_80gb", "te_flash") == "te_flash"
