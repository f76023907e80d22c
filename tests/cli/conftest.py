"""A home of a test's own, and a shared one with a server that was backed up, for tests that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.caller import Installation
from tests.servers import Server, make_folder, remove_folder


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """An empty home; its folder's name holds what real folders hold."""
    folder = tmp_path / "Dr. Müller's office"
    folder.mkdir()
    return Installation(folder)


@pytest.fixture(scope="session")
def clinics() -> Iterator[dict[str, Installation]]:
    """Homes that tests share, one a server version, until the session ends."""
    made: dict[str, Installation] = {}
    yield made
    for one in made.values():
        remove_folder(one.folder)


@pytest.fixture
def clinic(server: Server, clinics: dict[str, Installation]) -> Installation:
    """The cluster ``clinic`` with one backup in the repository ``usb``. A test leaves both as they were."""
    found = clinics.get(server.version)
    if found is None:
        found = clinics[server.version] = Installation(make_folder("cli"))
        found.init()
        found.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
        found.ok("backup", "run", "clinic", "--name", "the first one")
    return found
