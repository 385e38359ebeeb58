"""A bundle as a whole: every scheduler's files, what programs and people read of it, and that it is always the same."""

import json
import re

import pytest

from dlcalc import __version__
from dlcalc.launch.bundle import bundle
from dlcalc.launch.job import PlanValues
from dlcalc.launch.readme import MEANINGS
from dlcalc.launch.schedulers.write import SCHEDULERS
from dlcalc.utils.units import duration
from tests.launch_jobs import job
from tests.launch_parts import NAMES, emitted

STARTS = {"slurm": {"job.sbatch"}, "torchrun": {"start.sh", "host.sh"}}
ALWAYS = {"train.sh", "config.yaml", "measured.csv", "launch.json", "README.md"}
IMAGE = "nvcr.io/nvidia/nemo:25.09"
PLAN = {"tp": 2, "pp": 2, "dp": 4, "vpp": 2, "schedule": "interleaved", "sequence_parallel": True}


def made(scheduler, part=None, **of_job):
    return bundle(job("megatron-lm", **{"container": IMAGE, **PLAN, **of_job}), part or emitted(), scheduler)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("hosts", [(), ("n1",)])
def test_files(scheduler, hosts):
    files = made(scheduler, dp=2, hosts=hosts)
    assert set(files) == ALWAYS | STARTS.get(scheduler, {"job.yaml"}) | ({"hostfile"} if hosts else set())
    assert all(text.endswith("\n") for text in files.values())
    assert all(line == line.rstrip() for name in ("README.md", "train.sh") for line in files[name].splitlines())
    assert files == made(scheduler, dp=2, hosts=hosts)
    assert json.loads(files["launch.json"])["files"] == sorted(files)


def test_what_programs_read():
    one = job("megatron-lm", **PLAN, hosts=("b", "a"), name="café $(id)")
    told = json.loads(bundle(one, emitted(), "slurm")["launch.json"])
    assert (told["dlcalc"], told["name"], told["target"], told["scheduler"]) == (
        __version__, "café $(id)", "megatron-lm", "slurm",
    )  # fmt: skip
    assert PlanValues(**told["plan"]) == one.plan
    assert told["estimate"]["step_time_s"] == one.prediction.step_time_s
    assert (told["hosts"], told["devices"], told["host_devices"]) == (["b", "a"], 16, 8)
    assert type(one.model).model_validate(told["model"]) == one.model
    assert sum(told["chunk_layers"]) == one.model.n_layers


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_people_read(scheduler):
    one = job("megatron-lm", **PLAN, container=IMAGE)
    text = bundle(one, emitted(notes=("Steps are printed as `elapsed time per iteration`.",)), scheduler)["README.md"]
    flat = " ".join(text.split())
    told = one.prediction
    assert f"| time of a step | {duration(told.step_time_s)} |" in text
    assert f"{duration(told.step_time_low_s)} to {duration(told.step_time_high_s)}" in text
    assert "Compare the first 20 steps with this" in flat
    assert "dlcalc-calibrate measured.csv --hardware h100 --out my_h100.yaml" in text
    assert "16 devices = tp 2 x cp 1 x pp 2 x dp 4" in flat
    assert "Layers of the 4 pipeline chunks, in order: 8, 8, 8, 8." in flat
    assert "* Steps are printed as `elapsed time per iteration`." in text
    assert "| `TRAINER` | folder of the trainer | must be set |" in text
    command = {"slurm": "sbatch job.sbatch", "torchrun": "bash start.sh"}.get(scheduler, "kubectl create -f job.yaml")
    assert command in text
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 120


def test_every_knob_is_explained():
    assert list(MEANINGS) == list(job("megatron-lm", dp=8).plan.as_dict())


@pytest.mark.parametrize("name", [*NAMES, "a | b", "[x](y) <b> # *c*"])
def test_a_name_is_no_markdown(name):
    title = made("slurm", name=name)["README.md"].splitlines()[0]
    assert title.startswith("# ")
    assert not re.search(r"(?<!\\)[`*_<\[|]", title)


def test_notes_of_the_machine():
    assert "needs ROCm builds" in made("slurm", hardware="mi300x")["README.md"]
    rack = " ".join(made("jobset", hardware="gb200_nvl72")["README.md"].split())
    assert "IMEX must run on all of them" in rack
    assert "ComputeDomain" in rack
    racks = " ".join(made("slurm", hardware="gb200_nvl72", dp=64)["README.md"].split())
    assert "counts on 64 of 72 devices of each rack, 16 hosts: `--segment=16`" in racks
    assert "of each rack" not in rack  # one holds it
    assert "in the order of `hostfile`" in made("slurm", hosts=("a", "b"))["README.md"]
    assert "The image is that of the runtime" in made("trainjob", container=None)["README.md"]
    assert "## Notes" not in made("slurm")["README.md"]
