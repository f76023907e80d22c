from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemons import Daemons


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Services of a test's own."""
    folder = tmp_path / "services of the office"
    folder.mkdir()
    made = Daemons(folder)
    yield made
    made.power_off()
