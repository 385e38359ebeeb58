"""The parts of benchmarks/fit_runs.py."""
