"""A state that any release wrote opens for ever; one of a release to come is refused and not touched."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from datamanager.base.errors import FormatUnsupported
from datamanager.state.database import open_state
from datamanager.state.tables import REVISION, metadata
from tests.servers import Server
from tests.state.by_hand import by_hand, engine_of
from tests.state.contents import described, fill
from tests.state.make_released import RELEASED
from tests.state.parts import MovedClock

REVISIONS = sorted(path.stem for path in RELEASED.glob("*.json"))


def assert_holds(now: Any, then: Any, place: str = "state") -> None:
    """Everything that was read then is read now; fields that came later may stand beside it."""
    if isinstance(then, dict):
        for name, value in then.items():
            assert name in now, f"{place}.{name}"
            assert_holds(now[name], value, f"{place}.{name}")
    elif isinstance(then, list):
        assert len(now) == len(then), place
        for number, value in enumerate(then):
            assert_holds(now[number], value, f"{place}[{number}]")
    else:
        assert now == then, place


def test_the_state_of_this_release_is_kept_for_later_ones() -> None:
    assert REVISION in REVISIONS, "run `python -m tests.state.make_released` and keep what it writes"


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_released_state_in_a_file_opens(tmp_path: Path, clock: MovedClock, revision: str) -> None:
    file = tmp_path / "state.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(RELEASED.joinpath(f"{revision}.sqlite.sql").read_text(encoding="utf-8"))
    check_opens(f"sqlite:///{file}", clock, revision)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_released_state_in_postgresql_opens(
    server: Server, server_url: str, clock: MovedClock, revision: str
) -> None:
    text = RELEASED.joinpath(f"{revision}.postgresql.sql").read_text(encoding="utf-8")
    server.script(text, database=server_url.rpartition("/")[2])
    check_opens(server_url, clock, revision)


def check_opens(url: str, clock: MovedClock, revision: str) -> None:
    for _ in range(2):
        with open_state(url, clock=clock) as state:
            assert_holds(described(state), json.loads(RELEASED.joinpath(f"{revision}.json").read_text()))
            assert state.audit.verify()[0] == len(state.audit.list(limit=None))
    with open_state(url, clock=clock) as state:
        number = state.audit.append(who="a", origin="o", action="x", target="t").number
        assert state.audit.verify()[0] == number


def test_a_state_of_a_newer_release_is_refused_and_stays_as_it_is(url: str, clock: MovedClock) -> None:
    with open_state(url, clock=clock) as state:
        fill(state)
        before = described(state)
        by_hand(url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(FormatUnsupported, match="a newer release wrote"):
            open_state(url, clock=clock)
        assert described(state) == before


def test_revisions_make_the_tables_that_the_program_uses(url: str, clock: MovedClock) -> None:
    open_state(url, clock=clock).close()
    engine = engine_of(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        differences = compare_metadata(context, metadata)
    engine.dispose()
    assert differences == []
