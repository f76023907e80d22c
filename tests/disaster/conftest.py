"""Servers with content, repositories with a first backup, and the command line, for the tests of disaster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disaster.command import CommandLine
from tests.disaster.scene import Office, fill
from tests.servers import BinariesMissing, Server, binaries, create, make_folder, remove_folder


@dataclass(frozen=True)
class Scene:
    """A server, its tablespace, and a repository with one backup made before the newest 44 MB came."""

    server: Server
    office: Office
    first: str
    tablespace: Path


@pytest.fixture(scope="session")
def scenes() -> Iterator[dict[str, Scene]]:
    """One scene a version, shared by tests that copy its repository and leave its server as it was."""
    made: dict[str, Scene] = {}
    places: list[Path] = []
    try:
        yield made
    finally:
        for one in made.values():
            one.server.destroy()
            places.append(one.office.root.parent)
        for place in places:
            remove_folder(place)


@pytest.fixture
def scene(pg_version: str, scenes: dict[str, Scene]) -> Scene:
    """The scene of this version."""
    return _found(scenes, pg_version)


@pytest.fixture(scope="session")
def scene_18(scenes: dict[str, Scene]) -> Scene:
    """The scene of 18, for tests that run on it alone."""
    return _found(scenes, "18")


def _found(scenes: dict[str, Scene], version: str) -> Scene:
    if version not in scenes:
        try:
            binaries(version)
        except BinariesMissing as error:
            pytest.skip(str(error))
        scenes[version] = _make(version)
    return scenes[version]


def _make(version: str) -> Scene:
    server = create(version)
    place = server.tablespace("far away")
    server.sql('create table ledger (id int, entry text) tablespace "far away"')
    server.sql("insert into ledger select i, 'entry ' || i from generate_series(1, 20000) i")
    office = Office.make(server, make_folder("office"))
    first = office.back_up().manifest.backup
    fill(server, "scans", 44)
    server.sql("checkpoint")
    return Scene(server, office, first, place)


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """The command line with an empty home."""
    return CommandLine(tmp_path / "home")
