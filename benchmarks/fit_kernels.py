"""Fit the constants of the kernel equations to published kernel measurements and write them into ``configs/``.

    pip install aiconfigurator-core==0.12.0 scipy pandas     # or unzip the wheel and name its folder with --tables
    python benchmarks/fit_kernels.py [--tables FOLDER] [--device h100 ...] [--collectives] [--dry-run]

Reads the kernel tables of aiconfigurator-core (Apache-2.0), fits a third of the shapes, scores the other two thirds,
and writes the ``calibration:`` section of ``configs/<device>.yaml``, the error tables of ``docs/kernels.md`` and the
sample in ``tests/data/kernels`` that the tests hold the equations to. With ``--collectives`` it fits and writes those
alone.

The tables come from inference servers, whose calls do more than the kernel: they quantize activations before a matmul
in low precision, and append keys and values to a cache before attention. These *harness* costs are fitted alongside
(two constants a table) and are not part of the calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kernel_fit.devices import fit_device, fit_device_collectives
from kernel_fit.sources import SOURCES, tables_folder
from kernel_fit.writing import write_calibration, write_collectives, write_docs, write_harness, write_sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, help="folder systems/data of the package")
    parser.add_argument("--device", nargs="*", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--collectives", action="store_true", help="fit and write those alone")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    tables = tables_folder(options.tables)
    fits = []
    for device in options.device:
        fits.append((fit_device_collectives if options.collectives else fit_device)(tables, device))
        if options.dry_run:
            continue
        if options.collectives:
            write_collectives(device, fits[-1].calibration)
        else:
            write_calibration(device, fits[-1].calibration)
            write_sample(fits[-1])
    if not options.dry_run:
        if not options.collectives:
            write_harness(fits)
        write_docs(fits)


if __name__ == "__main__":
    main()
