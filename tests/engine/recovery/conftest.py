"""A scene of a server and its archive for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import NewServer
from tests.engine.recovery.scene import CONFIG, Scene, make_scene


@pytest.fixture
def scene(new_server: NewServer) -> Iterator[Scene]:
    made, end = make_scene(new_server(config=CONFIG, initdb_args=("--data-checksums", "--wal-segsize=1")))
    try:
        yield made
    finally:
        end()
