"""Scripts of a bundle: bash and shellcheck read them, whatever the job is called; the environment fits the job."""

import dataclasses
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings

from dlcalc.errors import DlcalcError
from dlcalc.hardware_registry import known_hardware, load_hardware
from dlcalc.launch.bundle import bundle
from dlcalc.launch.environment import ELASTIC_FABRIC, has_elastic_fabric
from dlcalc.launch.environment import settings as environment_of
from dlcalc.launch.job import Emitted, Variable
from dlcalc.launch.machines import pyxis_image
from dlcalc.launch.schedulers import slurm, torchrun
from dlcalc.launch.schedulers.write import SCHEDULERS
from dlcalc.launch.train_script import train_script
from tests.launch_jobs import job
from tests.launch_parts import NAMES, emitted, names, shellcheck, written

HOSTS = ("n1", "ip-10-0-0-2.ec2.internal")
IMAGES = (None, "nvcr.io/nvidia/nemo:25.09", "/images/$(id).sif", "a;reboot:latest")


def scripts(files):
    return [name for name, text in files.items() if text.startswith("#!")]


def parses(text):
    return subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)


@pytest.mark.parametrize("devices", [8, 16])
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("placed", [False, True])
def test_every_script_passes_shellcheck(tmp_path, image, placed, devices):
    hosts = HOSTS[: devices // 8] if placed else ()
    one = job("megatron-lm", dp=devices, name="$(rm -rf ~)", container=image, hosts=hosts)
    bundles = {
        "slurm": slurm.files(one, emitted(), {}),
        "torchrun": torchrun.files(one, emitted(), {}),
        "all": {"train.sh": train_script(one, emitted())},
    }
    paths = []
    for name, files in bundles.items():
        folder = tmp_path / name
        folder.mkdir()
        written(files, folder)
        paths += [folder / script for script in scripts(files)]
        for script in scripts(files):
            assert parses(files[script]).stderr == b""
    assert sorted(path.name for path in paths) == ["host.sh", "job.sbatch", "start.sh", "train.sh"]
    assert shellcheck(*paths) == ""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names)
def test_no_name_breaks_a_script(tmp_path, name):
    one = job("megatron-lm", dp=16, name=name)
    for scheduler in ("slurm", "torchrun"):
        files = bundle(one, emitted(), scheduler)
        for script in scripts(files):
            assert parses(files[script]).stderr == b""
            written(files, tmp_path)
        assert shellcheck(*(tmp_path / script for script in scripts(files))) == ""


@pytest.mark.parametrize("words", [(), ("a", "b")])
def test_a_trainer_without_options(tmp_path, words):
    part = Emitted(program=("-m", "trainer"), options=tuple((one,) for one in words))
    (tmp_path / "train.sh").write_text(train_script(job("torchtitan", dp=8), part))
    assert shellcheck(tmp_path / "train.sh") == ""


def directives(text):
    """Options of a batch script, read as sbatch does: in double quotes a backslash keeps the letter behind it."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line):
            value = match[2] or ""
            found[match[1]] = re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value
    return found


@pytest.mark.parametrize("name", NAMES)
def test_directives(name):
    one = job("megatron-lm", dp=16, name=name, hosts=HOSTS)
    assert directives(slurm.files(one, emitted(), {})["job.sbatch"]) == {
        "job-name": name,
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "exclusive": "",
        "time": "01:00:00",
        "output": "train-%j.out",
        "open-mode": "append",
        "requeue": "",
        "nodelist": ",".join(HOSTS),
    }


def test_a_rack_has_several_hosts():
    one = job("megatron-lm", hardware="gb200_nvl72", dp=8, tp=2)
    assert (one.host_devices, one.n_hosts) == (4, 4)
    told = directives(slurm.files(one, emitted(), {})["job.sbatch"])
    assert (told["nodes"], told["gpus-per-node"]) == ("4", "4")


@pytest.mark.parametrize(
    ("image", "read"),
    [
        ("nvcr.io/nvidia/nemo:25.09", "nvcr.io#nvidia/nemo:25.09"),
        ("localhost:5000/a/b", "localhost:5000#a/b"),
        ("ubuntu:24.04", "ubuntu:24.04"),
        ("pytorch/pytorch:2.9", "pytorch/pytorch:2.9"),
        ("nvcr.io#nvidia/nemo:25.09", "nvcr.io#nvidia/nemo:25.09"),
        ("/images/nemo.sqsh", "/images/nemo.sqsh"),
        ("./nemo.v2/nemo.sqsh", "./nemo.v2/nemo.sqsh"),
    ],
)
def test_images_as_pyxis_reads_them(image, read):
    assert pyxis_image(image) == read


# ---- the environment


def told(target, hardware="h100", environment=None, **knobs):
    given = {"dp": 16, **knobs}
    part = emitted(environment=environment or {})
    return {one.name: one.value for one in environment_of(job(target, hardware=hardware, **given), part)}


QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"


@pytest.mark.parametrize(
    ("target", "hardware", "knobs", "value"),
    [
        ("megatron-lm", "h100", {"tp": 2, "dp": 8}, "1"),
        ("megatron-bridge", "a100", {"cp": 2, "dp": 8}, "1"),
        ("nanotron", "h100", {"tp": 2, "dp": 8}, "1"),
        ("megatron-lm", "h100", {"dp": 16}, "absent"),
        ("megatron-lm", "b200", {"tp": 2, "dp": 8}, "absent"),  # no longer asked for
        ("torchtitan", "h100", {"tp": 2, "dp": 8}, "absent"),
        ("megatron-lm", "h100", {"dp": 16, "zero_stage": 3}, None),  # Megatron-FSDP refuses 1
    ],
)
def test_how_many_queues(target, hardware, knobs, value):
    assert told(target, hardware, **knobs).get(QUEUES, "absent") == value


def test_exchanges_of_experts_need_queues():
    moe = {"model": "qwen3-30b-a3b", "tp": 2, "dp": 8, "ep": 8, "sequence_parallel": True}
    assert told("megatron-lm", **moe)[QUEUES] == "1"
    assert told("megatron-lm", **moe, overlap_ep=True)[QUEUES] == "32"


def test_megatron_runs_as_the_runs_that_its_costs_are_fitted_to():
    """Values of Megatron-Bridge's performance recipes."""
    plain = told("megatron-bridge", overlap_grad=True)
    assert (plain["TORCH_NCCL_HIGH_PRIORITY"], plain["NVTE_FWD_LAYERNORM_SM_MARGIN"]) == ("1", "20")
    assert "NVTE_FWD_LAYERNORM_SM_MARGIN" not in told("megatron-lm", overlap_grad=False, overlap_param=False)
    assert "TORCH_NCCL_HIGH_PRIORITY" not in told("torchtitan")
    experts = {"model": "qwen3-30b-a3b", "dp": 128, "ep": 128, "framework": "megatron_bridge"}
    rack = told("megatron-bridge", "gb200_nvl72", **experts)
    assert (rack["NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"], rack["NVLINK_DOMAIN_SIZE"], rack["USE_MNNVL"]) == (
        "64",  # of 72: a job of 128 gets equally many of two racks
        "72",
        "1",
    )
    assert "USE_MNNVL" not in told("megatron-bridge", **experts)


def calibrated(hardware):
    """A job on a machine as dlcalc-calibrate writes it: another name, its description longer."""
    one = job("megatron-lm", hardware=hardware, dp=16)
    changes = {"name": "ours", "aliases": (), "description": f"{one.hardware.description}; calibrated on 5 runs"}
    return dataclasses.replace(one, hardware=one.hardware.model_copy(update=changes))


def test_what_the_fabric_needs():
    assert told("megatron-lm", "p5.48xlarge")["FI_PROVIDER"] == "efa"
    assert told("megatron-lm", "p6-b200.48xlarge")["FI_EFA_USE_HUGE_PAGE"] == "0"
    assert told("megatron-lm", "u-p6e-gb200x72")["FI_PROVIDER"] == "efa"
    assert "FI_PROVIDER" not in told("megatron-lm", "p5.48xlarge", dp=8)  # one host
    assert "FI_PROVIDER" not in told("megatron-lm", "h100")
    assert has_elastic_fabric(calibrated("p5.48xlarge"))
    assert not has_elastic_fabric(calibrated("h100"))
    assert told("megatron-lm", "gb200_nvl72")["NCCL_NVLS_ENABLE"] == "1"
    assert "NCCL_NVLS_ENABLE" not in told("megatron-lm", "h100")


def test_which_machines_are_amazons():
    amazons = {name for name in known_hardware() if ELASTIC_FABRIC.fullmatch(name)}
    described = {name for name in known_hardware() if load_hardware(name).description.startswith(("AWS p", "AWS g"))}
    assert amazons == described - {"p3.16xlarge"} | {"u-p6e-gb200x72", "u-p6e-gb300x72"}  # 25 Gbit/s of plain Ethernet
    assert has_elastic_fabric(job("megatron-lm", hardware="a10g"))  # an alias: g5.48xlarge


def test_the_trainer_has_the_last_word():
    assert told("megatron-lm", environment={"NCCL_DEBUG": "INFO"})["NCCL_DEBUG"] == "INFO"
    with pytest.raises(ValueError, match="no name of an environment variable"):
        told("megatron-lm", environment={"A B": "1"})


def test_amd_has_no_expandable_segments():
    assert "PYTORCH_CUDA_ALLOC_CONF" in told("torchtitan")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in told("torchtitan", "mi300x")


def test_the_hosts_cores_step_the_optimizer():
    text = train_script(job("megatron-lm", dp=8, offload_optimizer=True), emitted())
    assert 'OMP_NUM_THREADS="$(( per_node > 0 && $(nproc) > per_node ? $(nproc) / per_node : 1 ))"' in text


@pytest.mark.parametrize("hardware", [n for n in known_hardware() if n.startswith(("tpu", "trn"))])
def test_machines_without_torch_cuda_are_refused(hardware):
    devices = load_hardware(hardware).node.n_devices if hardware.startswith("trn") else 4
    one = job("torchtitan", hardware=hardware, dp=devices, global_batch=devices)
    with pytest.raises(DlcalcError, match=rf"torchtitan runs on CUDA or ROCm devices; {hardware} has neither"):
        train_script(one, emitted())


# ---- what is refused


@pytest.mark.parametrize("image", ["", "-it", "a b", "a\nb", "\x1b"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_no_image(image, scheduler):
    with pytest.raises(DlcalcError, match="is no image: write it as NAME:TAG, or the path of a file"):
        bundle(job("megatron-lm", dp=8, container=image), emitted(), scheduler)


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        (("a",), "the placement has 1 hosts; 16 devices are on 2 hosts of 8"),
        (("a", "b;id"), "host name 'b;id' cannot be written to a launch file"),
        (("a", "$(id)"), "cannot be written to a launch file"),
        (("a", "a"), "the placement names host a more than once"),
    ],
)
def test_hosts_that_cannot_be(hosts, problem):
    with pytest.raises(DlcalcError, match=re.escape(problem)):
        bundle(job("megatron-lm", dp=16, hosts=hosts), emitted(), "slurm")


def test_one_variable_has_one_default():
    part = emitted(("--a", Variable("X", "x", "1")), ("--b", Variable("X", "x", "2")))
    with pytest.raises(ValueError, match="X has two defaults"):
        train_script(job("megatron-lm", dp=8), part)


def test_files_stay_in_the_bundle():
    for name in ("train.sh", "/etc/passwd", "../x", "launch.json"):
        with pytest.raises(ValueError, match="cannot be a file of the bundle"):
            bundle(job("megatron-lm", dp=8), emitted(files={name: ""}), "slurm")
