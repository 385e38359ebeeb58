"""dlcalc: the parallel plan that trains a model fastest on a cluster, why, and how sure that is.

Importing this package costs nothing; what it offers is loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load_hardware": "dlcalc.hardware_registry",
    "load_model": "dlcalc.specs.model_registry",
}
"""Where each public name lives."""

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (both are text)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a module attribute can be anything)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
