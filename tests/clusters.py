"""A Dask cluster of real processes, an S3 server and one that speaks as Google Cloud Storage does, for tests."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import boto3
import distributed
import requests

CHECKOUT = Path(__file__).resolve().parents[1]
START_S = 120.0


@dataclass
class Cluster:
    """A scheduler and its workers, one thread each."""

    folder: Path
    processes: list[subprocess.Popen] = field(default_factory=list)
    address: str = ""

    @property
    def scheduler(self) -> subprocess.Popen:
        return self.processes[0]

    @property
    def workers(self) -> list[subprocess.Popen]:
        return self.processes[1:]

    def start_scheduler(self) -> None:
        file = self.folder / "scheduler.json"
        told = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        self._start(["scheduler", *told])
        until_s = time.monotonic() + START_S
        while not self.address:
            assert time.monotonic() < until_s, "the scheduler did not start"
            time.sleep(0.1)
            with contextlib.suppress(FileNotFoundError, ValueError):
                self.address = json.loads(file.read_text())["address"]

    def start_worker(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        told = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0"]
        local = ["--host", "127.0.0.1", "--local-directory", str(self.folder)]
        return self._start(["worker", self.address, *told, *local], environment)

    def _start(self, command: list[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        told = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(environment or {})}
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command], env=told, cwd=self.folder, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def wait_for(self, n_workers: int) -> None:
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(n_workers, timeout=START_S)


@contextlib.contextmanager
def dask_cluster(folder: Path, n_workers: int) -> Iterator[Cluster]:
    """A cluster of ``n_workers`` processes; whatever is left of it at the end is killed."""
    folder.mkdir(exist_ok=True)
    cluster = Cluster(folder)
    try:
        cluster.start_scheduler()
        for _ in range(n_workers):
            cluster.start_worker()
        if n_workers:
            cluster.wait_for(n_workers)
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            process.kill()
            process.wait()


@dataclass
class Store:
    """An S3 server with one bucket; what it holds survives :meth:`stop`."""

    bucket: str = "studies"
    port: int = 0

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def address(self, prefix: str) -> str:
        """Of a result, as users write it."""
        return f"s3://{self.bucket}/{prefix}?endpoint_override={self.endpoint}"

    def client(self):
        return boto3.client("s3", endpoint_url=self.endpoint)

    def names(self, prefix: str) -> list[str]:
        """Of what lies below ``prefix``."""
        listed = self.client().list_objects_v2(Bucket=self.bucket, Prefix=prefix + "/").get("Contents", [])
        return [one["Key"].removeprefix(prefix + "/") for one in listed if not one["Key"].endswith("/")]

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Content by name, below ``prefix``."""
        client = self.client()
        return {
            name: client.get_object(Bucket=self.bucket, Key=f"{prefix}/{name}")["Body"].read()
            for name in self.names(prefix)
        }

    def put(self, key: str, content: bytes) -> None:
        self.client().put_object(Bucket=self.bucket, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client().delete_object(Bucket=self.bucket, Key=key)


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_store() -> Iterator[Store]:
    """An S3 server with an empty bucket; credentials must be in the environment."""
    store = Store()
    store.start()
    try:
        store.client().create_bucket(Bucket=store.bucket)
        yield store
    finally:
        store.stop()


@dataclass
class GoogleStore:
    """An emulator of Google Cloud Storage with one bucket; what it holds survives :meth:`stop`."""

    folder: Path
    bucket: str = "studies"
    port: int = 0
    _process: subprocess.Popen | None = None

    def start(self) -> None:
        """In a process of its own: while pyarrow waits for it, it waits for no lock of this one's."""
        self.port = self.port or free_port()
        told = ["start", "--host", "localhost", "--port", str(self.port), "--default-bucket", self.bucket]
        command = [sys.executable, "-m", "gcp_storage_emulator", "--data-dir", str(self.folder), *told]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(self._objects, timeout=START_S)
                return
            assert time.monotonic() < until_s, "the store did not start"
            assert self._process.poll() is None, "the store ended"
            time.sleep(0.1)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def endpoint(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def _objects(self) -> str:
        return f"{self.endpoint}/storage/v1/b/{self.bucket}/o"

    def address(self, prefix: str) -> str:
        """Of a result, as users write it."""
        told = f"scheme=http&endpoint_override=localhost:{self.port}&retry_limit_seconds=3"
        return f"gs://anonymous@{self.bucket}/{prefix}?{told}"

    def names(self, prefix: str) -> list[str]:
        """Of what lies below ``prefix``."""
        listed = requests.get(self._objects, params={"prefix": prefix + "/"}, timeout=30).json().get("items", [])
        return [one["name"].removeprefix(prefix + "/") for one in listed if not one["name"].endswith("/")]

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Content by name, below ``prefix``."""
        return {name: self._get(f"{prefix}/{name}") for name in self.names(prefix)}

    def _get(self, key: str) -> bytes:
        return requests.get(f"{self._objects}/{quote(key, safe='')}", params={"alt": "media"}, timeout=30).content

    def put(self, key: str, content: bytes) -> None:
        told = {"uploadType": "media", "name": key}
        where = f"{self.endpoint}/upload/storage/v1/b/{self.bucket}/o"
        kind = {"Content-Type": "application/octet-stream"}  # which the real one assumes
        requests.post(where, params=told, data=content, headers=kind, timeout=30).raise_for_status()

    def delete(self, key: str) -> None:
        requests.delete(f"{self._objects}/{quote(key, safe='')}", timeout=30).raise_for_status()


@contextlib.contextmanager
def google_store(folder: Path) -> Iterator[GoogleStore]:
    """A store with an empty bucket."""
    store = GoogleStore(folder)
    store.start()
    try:
        yield store
    finally:
        store.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
