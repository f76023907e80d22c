"""Homes with a service that is gone when the test ends, whatever it did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.serving import Serving
from tests.system.conftest import daemons

__all__ = ["daemons"]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    folder = tmp_path / "Dr. Müller's office"
    folder.mkdir()
    made = Serving(folder)
    try:
        yield made
    finally:
        made.close()
