"""Bundles started for real: torchrun of the installed torch, two processes, a trainer that says what it was given.

What cannot run here is stood in for: ssh by a shell that runs the command (as sshd does), srun by one that starts the
tasks one after another.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dlcalc.launch.bundle import bundle
from dlcalc.launch.job import Beside, Emitted, Variable
from dlcalc.launch.train_script import train_script
from tests.launch_jobs import job
from tests.launch_parts import HOSTILE, emitted, written

pytest.importorskip("torch", reason="torchrun comes with torch")

TRAINER = """\
import json, os, sys
kept = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TRAINER_MODE", "NCCL_DEBUG",
        "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_MAX_CONNECTIONS", "PYTHONPATH")
told = {"argv": sys.argv, "cwd": os.getcwd(), "environment": {name: os.environ.get(name) for name in kept}}
with open(os.path.join(os.environ["TOLD"], os.environ["RANK"] + ".json"), "w", encoding="utf-8") as file:
    json.dump(told, file)
print("step 1", flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def place(tmp_path):
    """A folder whose name needs quoting, a trainer in it, and the environment to start it from."""
    folder = tmp_path / "it's a $(folder)"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "train.py").write_text(TRAINER)
    (folder / "told").mkdir()
    paths = [str(tmp_path / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    (tmp_path / "bin").mkdir()
    environment = {
        "PATH": os.pathsep.join(paths),
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "TRAINER": str(folder / "trainer"),
        "TOLD": str(folder / "told"),
        "PET_MASTER_PORT": free_port(),
    }
    return folder, environment


def started(script, environment, *arguments, folder, code=0):
    ran = subprocess.run(
        ["bash", str(script), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == code, ran.stderr.decode()
    return ran


def told(environment, rank):
    return json.loads((Path(environment["TOLD"]) / f"{rank}.json").read_text(encoding="utf-8"))


def two_processes(hosts=(), **more):
    """A job of two devices: two of one host, or one of two."""
    return job(
        "megatron-lm", tp=2, dp=1, hosts=hosts, host_devices=1 if len(hosts) == 2 else 2, **{"global_batch": 8, **more}
    )


def test_one_host(place):
    folder, environment = place
    written(bundle(two_processes(name="$(rm -rf ~)"), emitted(), "torchrun"), folder / "bundle")
    further = [*HOSTILE, "--steps", "3"]
    ran = started(
        folder / "bundle" / "start.sh",
        {**environment, "DATA": "my data", "NCCL_DEBUG": "INFO"},
        *further,
        folder=folder,
    )
    assert ran.stdout.count(b"step 1") == 2
    for rank in (0, 1):
        one = told(environment, rank)
        assert one["argv"] == [
            str(folder / "trainer" / "train.py"),
            *("--steps", "20", "--data", "my data", "--odd", "a } $(id) ' \" \\"),
            *("--config", str(folder / "bundle" / "config.yaml")),
            *("--text", *HOSTILE),
            *further,
        ]
        assert one["cwd"] == str(folder)
        found = one["environment"]
        assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"]) == (str(rank), str(rank), "2")
        assert found["MASTER_PORT"] == environment["PET_MASTER_PORT"]
        assert (found["TRAINER_MODE"], found["NCCL_DEBUG"], found["OMP_NUM_THREADS"]) == ("a b", "INFO", "1")
        assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
        assert found["PYTHONPATH"] is None


def test_a_module_of_the_bundle(place):
    folder, environment = place
    part = Emitted(
        program=("-m", "own_trainer"),
        options=(("--steps", Variable("N", "steps", "2")),),
        files={"own_trainer.py": TRAINER},
    )
    (folder / "train.sh").write_text(train_script(two_processes(zero_stage=3), part))
    (folder / "own_trainer.py").write_text(TRAINER)
    environment |= {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTHONPATH": "/other"}
    started(folder / "train.sh", environment, folder=folder.parent)
    one = told(environment, 1)
    assert one["argv"] == [str(folder / "own_trainer.py"), "--steps", "2"]
    assert one["environment"]["PYTHONPATH"] == f"{folder}:/other"
    assert one["environment"]["CUDA_DEVICE_MAX_CONNECTIONS"] is None  # 1 is what Megatron-FSDP refuses


SSH = """\
#!/bin/bash
printf '%s\\n' "${@:5:1}" >> "$HOME/reached"
[[ "$1 $2 $3 $4" == "-tt -o BatchMode=yes --" ]] || exit 1
exec env -i PATH="$PATH" HOME="$HOME" TOLD="$TOLD" bash -c "${@:6}"
"""


def stand_in(tmp_path, name, text):
    (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / name).chmod(0o755)


def test_two_hosts_by_ssh(place, tmp_path):
    folder, environment = place
    stand_in(tmp_path, "ssh", SSH)
    hosts = ("localhost", "127.0.0.1")
    part = emitted(("--text", *HOSTILE), ("--odd", Variable("ODD", "a default", "")), ("--file", Beside("config.yaml")))
    written(bundle(two_processes(hosts), part, "torchrun"), folder / "bundle")
    further = ["'", "$(id)", "a b"]
    started(folder / "bundle" / "start.sh", {**environment, "ODD": "c \"'$d"}, *further, folder=folder)
    assert sorted((tmp_path / "reached").read_text().split()) == sorted(hosts)
    for rank in (0, 1):
        one = told(environment, rank)
        file = str(folder / "bundle" / "config.yaml")
        assert one["argv"][1:] == ["--text", *HOSTILE, "--odd", "c \"'$d", "--file", file, *further]
        found = one["environment"]
        assert (found["RANK"], found["LOCAL_RANK"], found["GROUP_RANK"]) == (str(rank), "0", str(rank))
        assert found["MASTER_ADDR"] == "localhost"


def test_a_host_that_fails_ends_the_others(place, tmp_path):
    folder, environment = place
    stand_in(tmp_path, "ssh", '#!/bin/bash\n[[ "$5" == b ]] && exit 7\nexec sleep 1000\n')
    written(bundle(two_processes(("a", "b")), emitted(), "torchrun"), folder / "bundle")
    started(folder / "bundle" / "start.sh", environment, folder=folder, code=7)


def test_two_hosts_that_know_their_names(place):
    folder, environment = place
    hosts = ("localhost", "worker.example")
    written(bundle(two_processes(hosts), emitted(), "torchrun"), folder / "bundle")
    script = ["bash", str(folder / "bundle" / "host.sh")]
    running = [
        subprocess.Popen(script, env={**environment, "NODE_NAME": name}, cwd=folder, stdout=subprocess.DEVNULL)
        for name in ("worker", "localhost")
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert [told(environment, rank)["environment"]["GROUP_RANK"] for rank in (0, 1)] == ["0", "1"]
    ran = started(script[1], {**environment, "NODE_NAME": "other"}, folder=folder, code=2)
    assert ran.stderr == b"other is not a node of this placement\n"


SRUN = """\
#!/bin/bash
options=()
while [[ "$1" == -* ]]; do options+=("$1"); shift; done
printf '%s\\n' "${options[@]}" > "$HOME/srun"
[[ " ${options[*]} " == *" --distribution=arbitrary "* ]] && cp "$SLURM_HOSTFILE" "$HOME/hosts"
for ((task = 0; task < SLURM_JOB_NUM_NODES; task++)); do SLURM_PROCID=$task "$@" & done
wait
"""


@pytest.mark.parametrize("placed", [False, True])
def test_slurm_tasks(place, tmp_path, placed):
    folder, environment = place
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "scontrol", "#!/bin/bash\n[[ $* == 'show hostnames n[0-1]' ]] && printf 'localhost\\nn1\\n'\n")
    hosts = ("localhost", "n1") if placed else ()
    one = job("megatron-lm", tp=2, dp=1, hosts=hosts, host_devices=1, global_batch=8, name="$(id)")
    written(bundle(one, emitted(), "slurm"), folder / "bundle")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "slurm_script").write_text((folder / "bundle" / "job.sbatch").read_text())
    of_slurm = {
        "SLURM_SUBMIT_DIR": str(folder / "bundle"),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_CPUS_ON_NODE": "4",
    }
    started(tmp_path / "spool" / "slurm_script", {**environment, **of_slurm}, "'", "$(id)", folder=folder)
    for rank in (0, 1):
        one_told = told(environment, rank)
        assert one_told["argv"][-3:] == [HOSTILE[-1], "'", "$(id)"]
        assert one_told["environment"]["GROUP_RANK"] == str(rank)
        assert one_told["environment"]["MASTER_ADDR"] == "localhost"
    options = (tmp_path / "srun").read_text().splitlines()
    assert options[:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=4", "--cpu-bind=none"]
    assert options[3:] == (["--distribution=arbitrary"] if placed else [])
    if placed:
        assert (tmp_path / "hosts").read_text() == "localhost\nn1\n"
    lost = started(tmp_path / "spool" / "slurm_script", environment, folder=tmp_path, code=2)
    assert b"submit from its folder, or BUNDLE=/its/path sbatch job.sbatch" in lost.stderr


DOCKER = """\
#!/bin/bash
printf '%s\\0' "$@" > "$HOME/docker"
"""


def test_a_container_is_given_devices_files_and_settings(place, tmp_path):
    folder, environment = place
    stand_in(tmp_path, "docker", DOCKER)
    written(bundle(two_processes(container="nvcr.io/nvidia/nemo:25.09"), emitted(), "torchrun"), folder / "bundle")
    started(folder / "bundle" / "start.sh", {**environment, "ODD": "a b"}, "$(id)", folder=folder)
    words = (tmp_path / "docker").read_bytes().decode().split("\0")[:-1]
    assert words[0] == "run"
    assert "--gpus=all" in words
    assert words[words.index("nvcr.io/nvidia/nemo:25.09") :] == [
        "nvcr.io/nvidia/nemo:25.09", "bash", "/dlcalc/train.sh", "$(id)",
    ]  # fmt: skip
    assert f"--volume={folder / 'bundle'}:/dlcalc:ro" in words
    assert {"--env=ODD=a b", f"--env=TRAINER={folder / 'trainer'}"} <= set(words)
    awkward = written(bundle(two_processes(container="a"), emitted(), "torchrun"), tmp_path / "a:b")
    ran = started(awkward / "start.sh", environment, folder=folder, code=2)
    assert b"cannot be mounted into a container: rename what has a colon or a comma" in ran.stderr


@pytest.mark.parametrize(
    ("changes", "devices", "problem"),
    [
        ({"TRAINER": ""}, 8, "train.sh: set TRAINER: folder of the trainer\n"),
        (
            {"TRAINER": ""},
            16,
            "train.sh: set PET_NODE_RANK: which of the hosts this is, from 0\n"
            "train.sh: set PET_MASTER_ADDR: name or address of host 0, which the others reach\n"
            "train.sh: set TRAINER: folder of the trainer\n",
        ),
        (
            {"PET_NNODES": "3"},
            16,
            "train.sh: the plan is for 16 devices, as 2 hosts of 8; PET_NNODES=3 times PET_NPROC_PER_NODE=8 is another "
            "number\n",
        ),
        (
            {"PET_NPROC_PER_NODE": "auto"},
            8,
            "train.sh: the plan is for 8 devices, as 1 host of 8; PET_NNODES=1 times PET_NPROC_PER_NODE=auto is "
            "another number\n",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(place, changes, devices, problem):
    folder, environment = place
    (folder / "train.sh").write_text(train_script(job("megatron-lm", dp=devices), emitted()))
    ran = started(folder / "train.sh", {**environment, **changes}, folder=folder, code=2)
    assert ran.stderr.decode() == problem


def test_other_hosts_of_as_many_devices(place, tmp_path):
    """A plan for one host of eight may run on two of four."""
    from torch.distributed.run import config_from_args, get_args_parser

    folder, environment = place
    stand_in(tmp_path, "torchrun", '#!/bin/bash\nprintf \'%s\\0\' "$@" > "$HOME/torchrun"\n')
    (folder / "train.sh").write_text(train_script(job("megatron-lm", dp=8), emitted()))
    changes = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "n0"}
    started(folder / "train.sh", {**environment, **changes}, folder=folder)
    words = (tmp_path / "torchrun").read_bytes().decode().split("\0")[:-1]
    arguments = get_args_parser().parse_args(words)
    config, command, rest = config_from_args(arguments)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 4)
    assert config.rdzv_endpoint == f"n0:{environment['PET_MASTER_PORT']}"
    assert config.rdzv_configs["rank"] == 1
    assert arguments.training_script == str(folder / "trainer" / "train.py")
    assert rest[-len(HOSTILE) :] == list(HOSTILE)
    assert command == sys.executable
