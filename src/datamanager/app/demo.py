"""The demo, wired to a run."""

from __future__ import annotations

from datamanager.app.context import Context
from datamanager.demo.run import DemoOptions, DemoReport, run_demo

__all__ = ["DemoReport", "run"]


def run(context: Context, size_bytes: int, seed: int, *, keep: bool) -> DemoReport:
    """Run the demo in a temporary folder. Raises: as ``run_demo``."""
    return run_demo(DemoOptions(size_bytes=size_bytes, seed=seed, keep=keep), context.stop, context.listener)
