"""A real slurmctld for tests, with nodes that it only believes in."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest

NEEDED = ("munged", "slurmctld", "scontrol", "sbatch")
MISSING = [program for program in NEEDED if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None]
TOPOLOGY = """\
# two tiers, unequal leaves
SwitchName=core Switches=s[0-1]
switchname=s0 SWITCHES=l[0-1] # west
SwitchName=s1 Switches=l2 LinkSpeed=400
SwitchName=l0 Nodes=n[0-3]
SwitchName=l1 \\
  Nodes=n[4-7]
SwitchName=l2 Nodes=n[08-11]
"""
NODES = "n[0-7],n[08-11]"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(command, **options):
    path = os.environ["PATH"] + ":/usr/sbin"
    return subprocess.Popen(
        [shutil.which(command[0], path=path), *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )


def stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def scontrol(*arguments):
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)


@contextmanager
def running_slurm(folder):
    """A controller of its own, with its own munge; cloud nodes, since those need no daemon to be given to a job."""
    key = folder / "munge.key"
    key.write_bytes(bytes(range(128)))
    key.chmod(0o600)
    (folder / "state").mkdir()
    (folder / "topology.conf").write_text(TOPOLOGY)
    name = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(
        f"ClusterName=test\nSlurmctldHost={name}(127.0.0.1)\nSlurmctldPort={free_port()}\nSlurmdPort={free_port()}\n"
        f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.sock\nCredType=cred/none\nSlurmUser={os.getuid()}\n"
        f"StateSaveLocation={folder}/state\nSlurmctldPidFile={folder}/ctld.pid\nSlurmctldLogFile={folder}/ctld.log\n"
        "SwitchType=switch/none\nMpiDefault=none\nProctrackType=proctrack/linuxproc\nSelectType=select/cons_tres\n"
        "SelectTypeParameters=CR_Core\nTopologyPlugin=topology/tree\nGresTypes=gpu\nSchedulerParameters=sched_interval=1\n"
        "SuspendProgram=/bin/true\nResumeProgram=/bin/true\nSuspendTime=3600\nResumeTimeout=3600\nPrivateData=cloud\n"
        f"NodeName={NODES} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:h100:8 State=CLOUD\n"
        "PartitionName=p Nodes=ALL Default=YES\n"
    )
    munged = started(
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock", "--num-threads=1"]
        + [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        slurmctld = started(["slurmctld", "-D", "-f", str(conf)])
        try:
            for _ in range(100):
                if scontrol("ping").returncode == 0:
                    break
                time.sleep(0.2)
            else:
                log = folder / "ctld.log"
                pytest.skip("slurmctld does not start here: " + (log.read_text()[-300:] if log.exists() else "no log"))
            yield folder
        finally:
            stop(slurmctld)
            stop(munged)
