"""Names of machines in rows of measured runs: each finds its own machine, and says where it is only a relative."""

import pytest

from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.validation.hardware_names import SIBLINGS, hardware_name

REGISTRY = HardwareRegistry()
KNOWN = REGISTRY.names(aliases=True)


def found(written):
    taken = hardware_name(written, KNOWN)
    return (None, "") if taken is None else (REGISTRY.load(taken.word).name, taken.remark)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        # as nvidia-smi, rocm-smi and others print them
        ("NVIDIA A100-SXM4-80GB", "a100_80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("A100 SXM4 40 GB", "a100_40gb"),
        ("Trainium1", "trn1.32xlarge"),
        ("TPUv5lite", "tpu_v5e"),
        ("NVIDIA A100-PCIE-40GB", "a100_pcie_40gb"),
        ("NVIDIA A100 80GB PCIe", "a100_pcie_80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", "h100_nvl"),
        ("NVIDIA H200 NVL", "h200_nvl"),
        ("NVIDIA GH200 120GB", "gh200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GH200 144G HBM3e", "gh200_144gb"),
        ("Tesla V100-SXM2-16GB", "v100_16gb"),
        ("Tesla V100-SXM2-32GB", "v100_32gb"),
        ("Tesla V100-SXM3-32GB", "dgx2"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"),
        ("AMD Instinct MI250X", "mi250x"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("MI300X_OAM_192GB", "mi300x"),
        ("Intel Gaudi 3", "gaudi3"),
        # as people write them
        ("A100-80GB", "a100_80gb"),
        ("a100-40g", "a100_40gb"),
        ("a100sxm4_80gb", "a100_80gb"),
        ("A100 PCIe", "a100_pcie_80gb"),
        ("a800_sxm_80gb", "a800_80gb"),
        ("h100-sxm5-80gb", "h100"),
        ("h100_pcie", "h100_pcie"),
        ("8xH100", "h100"),
        ("A100 x8", "a100_80gb"),
        ("gh200_120gb", "gh200"),
        ("V100 32G", "v100_32gb"),
        ("v100_sxm3_32gb", "dgx2"),
        ("dgx-1", "v100_32gb"),
        ("DGX-2", "dgx2"),
        ("MI250X_GCD", "mi250x"),
        ("mi250", "mi250"),
        ("MI300A", "mi300a"),
        ("MI350X", "mi350x"),
        ("tpu-v4", "tpu_v4"),
        ("TPU v5e", "tpu_v5e"),
        ("TPU v5 lite", "tpu_v5e"),
        ("tpu v5p", "tpu_v5p"),
        ("Trillium", "tpu_v6e"),
        ("TPU7x", "tpu_v7"),
        ("gaudi2", "gaudi2"),
        ("gb300 NVL72", "gb300_nvl72"),
        ("trn2u.48xlarge", "trn2u"),
        ("g5.48xlarge", "a10g"),
        ("h100_sxm_96gb_hbm2e_500w", "h100_96gb_500w"),
    ],
)
def test_a_machine_is_found_without_a_remark(written, name):
    assert found(written) == (name, "")


@pytest.mark.parametrize(
    ("written", "name", "because"),
    [
        ("MI250X 128GB", "mi250x", "one die of 64 GB, half a package, is one device"),
        ("V100-PCIE-32GB", "v100_32gb", "draws 300 W, not 250"),
        ("H800 PCIe", "h800", "draws 700 W, not 350"),
        ("DGX-2H", "dgx2", "draw 350 W, not 450"),
        ("dgx2h", "dgx2", "draw 350 W, not 450"),
        ("mi300", "mi300x", "taken as mi300x"),
        ("A800 SXM4 40GB", "a800_80gb", "taken as a800"),
        ("A100-64GB", "a100_80gb", "taken as a100"),
        ("gb200-nvl36", "gb200_nvl72", "taken as gb200"),
        ("B200 192GB", "b200", "taken as b200"),
    ],
)
def test_a_relative_is_told_as_one(written, name, because):
    machine, remark = found(written)
    assert machine == name
    assert remark.startswith(f"hardware {written} taken as ")
    assert because in remark


@pytest.mark.parametrize(
    "written",
    ["abacus", "", "b2000", "sxm", "80gb", "100", "_", "x8", "T4", "A40", "a10", "L40", "RTX 3090", "tpu v3", "B100"],
)
def test_what_is_none_of_ours_is_not_taken_for_one(written):
    assert found(written) == (None, "")


def test_a_form_factor_outweighs_a_size():
    """94 GB are of the H100 NVL, but an SXM is no card."""
    name, remark = found("h100_sxm_94gb")
    assert (name, "taken as" in remark) == ("h100", True)


def test_every_name_and_alias_finds_itself():
    for name in KNOWN:
        assert found(name) == (REGISTRY.load(name).name, "")


def test_siblings_are_machines():
    for nearest, _ in SIBLINGS.values():
        assert REGISTRY.load(nearest)
