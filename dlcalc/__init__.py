"""dlcalc: the parallel plan that trains a model fastest on a cluster, why, and how sure that is.

Importing this package costs nothing; what it offers is loaded when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dlcalc.api import PlanEstimate, estimate, search
    from dlcalc.hardware_registry import load_hardware
    from dlcalc.specs.model_registry import load_model

_HOME = {  # `search` is the package of that name, which can be called
    "PlanEstimate": "dlcalc.api",
    "estimate": "dlcalc.api",
    "load_hardware": "dlcalc.hardware_registry",
    "load_model": "dlcalc.specs.model_registry",
}
"""Where each public name lives."""

__all__ = ["PlanEstimate", "__version__", "estimate", "load_hardware", "load_model", "search"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a module attribute can be anything)
    if name == "search":
        return import_module("dlcalc.search")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
