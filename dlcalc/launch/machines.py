"""What schedulers must know of the machine: hosts by name, the image, and how a container gets at the devices."""

from __future__ import annotations

import re

from dlcalc.errors import DlcalcError
from dlcalc.launch.environment import is_rocm
from dlcalc.launch.job import Job
from dlcalc.launch.ranks import HOST
from dlcalc.utils.printable import printable

INSIDE = "/dlcalc"
"""Where the bundle lies in a container."""
_REGISTRY = re.compile(r"(?P<registry>[^/#@]*[.:][^/#@]*|localhost)/(?P<rest>[^#]+)")


def checked_hosts(job: Job) -> tuple[str, ...]:
    """The hosts that nodes were placed on, by node rank; none where they were not."""
    if job.hosts and len(job.hosts) != job.n_hosts:
        raise DlcalcError(
            f"the placement has {len(job.hosts)} hosts; {job.devices} devices are on {job.n_hosts} hosts of "
            f"{job.host_devices}"
        )
    for host in job.hosts:
        if not HOST.fullmatch(host):
            raise DlcalcError(f"host name {printable(host, 60)!r} cannot be written to a launch file")
    if len(set(job.hosts)) < len(job.hosts):
        twice = next(host for host in job.hosts if job.hosts.count(host) > 1)
        raise DlcalcError(f"the placement names host {twice} more than once")
    return job.hosts


def checked_image(job: Job) -> str | None:
    """The image, unless it could be taken for something else."""
    image = job.container
    if image is None:
        return None
    if not image or image.startswith("-") or not image.isprintable() or any(letter.isspace() for letter in image):
        raise DlcalcError(
            f"--container {printable(image, 60)!r} is no image: write it as NAME:TAG, or the path of a file"
        )
    return image


def is_apptainer(image: str) -> bool:
    """Whether the image is a file of apptainer's."""
    return image.endswith(".sif")


def pyxis_image(image: str) -> str:
    """As pyxis reads it: ``nvcr.io#nvidia/nemo:25.09``, or a path; a registry is told from a folder by its dot or port.

    https://github.com/NVIDIA/enroot/blob/master/doc/cmd/import.md
    """
    if image.startswith(("/", "./", "../")) or image.endswith(".sqsh"):
        return image
    parts = _REGISTRY.fullmatch(image)
    return f"{parts['registry']}#{parts['rest']}" if parts else image


def docker_devices(job: Job) -> str:
    """Options of ``docker run`` that pass the devices on."""
    return "--device=/dev/kfd --device=/dev/dri --group-add=video" if is_rocm(job) else "--gpus=all"


def apptainer_devices(job: Job) -> str:
    """Option of ``apptainer exec`` that passes the devices on."""
    return "--rocm" if is_rocm(job) else "--nv"


def mounted(folder: str) -> list[str]:
    """Lines that refuse a folder whose name would be read as several when it is mounted."""
    return [
        f'if [[ "${folder}" == *[:,]* ]]; then',
        f'  echo "${folder} cannot be mounted into a container: rename what has a colon or a comma" >&2',
        "  exit 2",
        "fi",
    ]
