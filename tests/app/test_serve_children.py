"""The service's children as their parent sees them."""

from __future__ import annotations

import pytest

from datamanager.app.serve_children import pause_after


@pytest.mark.parametrize(("deaths", "seconds"), [(1, 1), (2, 2), (6, 32), (7, 60), (100_000, 60)])
def test_a_child_that_dies_for_days_is_begun_again_every_minute(deaths: int, seconds: float) -> None:
    assert pause_after(deaths) == seconds
