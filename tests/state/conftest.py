"""A state in a file, and one in a database of a real PostgreSQL: tests that ask for ``url`` run on both."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.config.state_url import sqlite_url
from datamanager.state.database import State, open_state
from tests.servers import Server
from tests.state.parts import MovedClock


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "state" / "state.sqlite")


@pytest.fixture(scope="module")
def databases(shared_servers: dict[str, Server]) -> Iterator[dict[str, str]]:
    """The database of each version's server that the tests of a file share; making one takes half a second."""
    made: dict[str, str] = {}
    yield made
    for version, name in made.items():
        shared_servers[version].sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def server_url(server: Server, databases: dict[str, str]) -> Iterator[str]:
    """A database without our schema, which is made by whoever opens it."""
    name = databases.get(server.version)
    if name is None:
        name = databases[server.version] = f"state_{secrets.token_hex(4)}"
        server.sql(f"CREATE DATABASE {name}")
    yield f"postgresql://{server.superuser}@127.0.0.1:{server.port}/{name}"
    server.sql("DROP SCHEMA IF EXISTS datamanager CASCADE", database=name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, file_url: str, server_url: str) -> str:
    return file_url if request.param == "sqlite" else server_url


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def state(url: str, clock: MovedClock) -> Iterator[State]:
    with open_state(url, clock=clock) as opened:
        yield opened
