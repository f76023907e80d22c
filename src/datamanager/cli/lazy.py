"""Modules that load when something in them is first used, so that ``--help`` needs click alone.

importlib.util.LazyLoader is not used: it puts unloaded modules into ``sys.modules``, where the first library that looks
through them all (inspect, hypothesis) loads them, half of them while their own imports run.
"""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """Stands for a module; every attribute is the module's own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def lazy(name: str) -> LazyModule:
    """The module ``name``, imported at its first use."""
    return LazyModule(name)
