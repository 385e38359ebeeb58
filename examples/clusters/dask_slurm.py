"""Search on a Slurm cluster: starts workers as jobs, and dlcalc-search beside them.

    python examples/clusters/dask_slurm.py --jobs 16 --cores 64 --partition cpu -- study.yaml -o /shared/study
    python examples/clusters/dask_slurm.py --jobs 16 --cores 64 --print-job

What stands behind ``--`` goes to dlcalc-search. Run it where jobs can be submitted and reached from, in the environment
that jobs shall use (it must be on a file system that nodes share), for as long as the search takes. Needs
``pip install 'dlcalc[distributed]' dask-jobqueue``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from dask_jobqueue import SLURMCluster
from distributed import Client

FIRST_JOB_S = 24 * 3600.0


def main() -> int:
    """Start workers, wait for the first, and search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="Slurm jobs to submit.")
    parser.add_argument("--cores", type=int, default=16, help="Of each; every core is a worker.")
    parser.add_argument("--gib-per-core", type=float, default=2.0)
    parser.add_argument("--walltime", default="02:00:00")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--interface", help="Network interface between nodes, such as ib0.")
    parser.add_argument("--print-job", action="store_true", help="Print the job script, and submit nothing.")
    parser.add_argument("search", nargs="*", help="Arguments of dlcalc-search.")
    told = parser.parse_args()
    with SLURMCluster(
        cores=told.cores,
        processes=told.cores,  # one thread each: shards compute all the time
        memory=f"{told.cores * told.gib_per_core:g} GiB",
        walltime=told.walltime,
        queue=told.partition,
        account=told.account,
        interface=told.interface,
        python=sys.executable,
        job_script_prologue=["export OMP_NUM_THREADS=1"],
        scheduler_options={"dashboard_address": ":0"},
    ) as cluster:
        if told.print_job:
            print(cluster.job_script())
            return 0
        cluster.scale(jobs=told.jobs)
        with Client(cluster) as client:
            client.wait_for_workers(1, timeout=FIRST_JOB_S)  # the queue may be long
        where = ["--executor", "dask", "--scheduler", cluster.scheduler_address]
        return subprocess.run(
            [sys.executable, "-m", "dlcalc.dlcalc_search", *told.search, *where], check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
