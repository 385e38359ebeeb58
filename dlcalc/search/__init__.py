"""The search: axes of a space, every plan of it, what leads.

Also the function ``dlcalc.search``, by the name users expect.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package that can be called: ``dlcalc.search`` is a folder of the house and a function of the interface."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - typed in dlcalc.api
        from importlib import import_module

        return import_module("dlcalc.api").search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
