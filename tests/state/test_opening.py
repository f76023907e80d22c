"""Opening the state: whose its files are, and what is said when it cannot be used."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.errors import ConfigurationError, IntegrityError, StateError, StateUnavailable
from datamanager.base.units import Secret
from datamanager.config.state_url import sqlite_path, sqlite_url
from datamanager.state.database import State, open_state
from datamanager.state.model import JobEvent
from tests.conftest import NewServer
from tests.servers import Server
from tests.state.by_hand import by_hand, engine_of
from tests.state.parts import MORNING, MovedClock, backup, done

if sys.platform != "win32":
    import pwd

CHECKOUT = Path(__file__).resolve().parents[2]


def test_a_new_file_is_for_its_owner_alone(file_url: str, clock: MovedClock) -> None:
    path = sqlite_path(file_url)
    assert path is not None
    with open_state(file_url, clock=clock) as state:
        state.jobs.add(backup())
        found = {one.name: stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()}
    assert found == {"state.sqlite": 0o600, "state.sqlite-wal": 0o600, "state.sqlite-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_with_strange_letters_can_hold_the_state(tmp_path: Path, clock: MovedClock) -> None:
    path = tmp_path / "Büro #1 100%41?" / "state file.sqlite"
    with open_state(sqlite_url(path), clock=clock) as state:
        state.jobs.add(backup())
    assert path.is_file()


@pytest.mark.root
def test_what_root_makes_in_a_folder_belongs_to_the_folders_account(open_folder: Path) -> None:
    folder = open_folder / "state"
    folder.mkdir(mode=0o700)
    account = pwd.getpwnam("nobody")
    os.chown(folder, account.pw_uid, account.pw_gid)
    url = sqlite_url(folder / "state.sqlite")
    with open_state(url, clock=SystemClock()) as state:
        state.jobs.add(backup())
        owners = {(one.name, one.stat().st_uid) for one in folder.iterdir()}
        assert owners == {(f"state.sqlite{end}", account.pw_uid) for end in ("", "-wal", "-shm")}
        # That account writes beside root.
        statement = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA user_version = 7').close()"
        subprocess.run(
            ["/usr/bin/env", "python3", "-I", "-c", statement, str(folder / "state.sqlite")],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            check=True,
            cwd="/",
        )
        assert state.jobs.count() == 1


@pytest.mark.root
def test_root_follows_no_link_in_a_folder_of_another_account(open_folder: Path, tmp_path: Path) -> None:
    folder = open_folder / "state"
    folder.mkdir()
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    folder.joinpath("state.sqlite").symlink_to(tmp_path / "roots-own")
    with pytest.raises(StateError, match="a link in a folder of another account"):
        open_state(sqlite_url(folder / "state.sqlite"), clock=SystemClock())
    assert not (tmp_path / "roots-own").exists()


def test_a_damaged_file_is_named_with_the_remedy(file_url: str, clock: MovedClock) -> None:
    path = sqlite_path(file_url)
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(os.urandom(8192))
    with pytest.raises(StateError, match=r"open state: .*is damaged") as refused:
        open_state(file_url, clock=clock)
    assert f"Move {path}" in refused.value.hint
    assert not refused.value.retryable


def test_a_place_that_cannot_be_written_is_named(clock: MovedClock) -> None:
    with pytest.raises(StateError, match=r"open state /proc/none/state\.sqlite: "):
        open_state("sqlite:////proc/none/state.sqlite", clock=clock)


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path, clock: MovedClock) -> None:
    with pytest.raises(StateError, match="cannot be opened or written"):
        open_state(sqlite_url(tmp_path), clock=clock)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite:///relative.sqlite", "sqlite://", "state.sqlite"])
def test_an_address_of_another_kind_is_refused(url: str, clock: MovedClock) -> None:
    with pytest.raises(ConfigurationError):
        open_state(url, clock=clock)


def test_a_time_that_no_longer_reads_as_one_is_named_by_the_audit(file_url: str, clock: MovedClock) -> None:
    with open_state(file_url, clock=clock) as state:
        for _ in range(2):
            state.audit.append(who="a", origin="o", action="x", target="t")
        by_hand(file_url, "UPDATE audit SET time = 'yesterday' WHERE number = 2")
        with pytest.raises(IntegrityError, match="entry 2:"):
            state.audit.verify()


def test_a_database_that_stays_locked_is_busy_and_can_be_tried_again(url: str, clock: MovedClock) -> None:
    state = open_state(url, clock=clock, wait_seconds=0.5)
    engine = engine_of(url)
    if engine.dialect.name == "sqlite":
        statement = "BEGIN IMMEDIATE"
    else:
        statement = "LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
        with pytest.raises(StateUnavailable, match="queue job: ") as refused:
            state.jobs.add(backup())
        assert refused.value.retryable
        connection.rollback()
    engine.dispose()
    assert state.jobs.add(backup()) is not None
    state.close()


def test_no_value_of_a_row_stands_in_a_message(state: State) -> None:
    state.jobs.add(backup(), id="one")
    with pytest.raises(StateError) as refused:
        state.jobs.add(backup(who="hush-hush"), id="one")
    chain: list[str] = []
    error: BaseException | None = refused.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__
    assert not [text for text in chain if "hush-hush" in text]


def test_a_failed_change_leaves_nothing(state: State) -> None:
    state.jobs.save(done(MORNING, id="one"), [JobEvent(MORNING, "phase", "p")])
    with pytest.raises(StateError):
        state.jobs.save(done(MORNING, id="one"), [JobEvent(MORNING, "phase", "p"), JobEvent(MORNING, None, "p")])  # type: ignore[arg-type]
    assert [one.text for one in state.jobs.events("one")] == ["p"]


def test_threads_share_a_state(state: State) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                state.jobs.add(backup())
                state.jobs.list()
                state.audit.append(who="a", origin="o", action="x", target="t")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (state.jobs.count(), state.audit.verify()[0]) == (60, 60)


def test_a_reader_is_not_held_up_by_a_writer(state: State, file_url: str, url: str) -> None:
    state.jobs.add(backup())
    engine = engine_of(url)
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.exec_driver_sql("DELETE FROM jobs")
        assert state.jobs.count() == 1
        connection.rollback()
    engine.dispose()


def test_a_server_that_is_away_is_said_so_and_used_again_when_it_is_back(new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE ROLE history LOGIN PASSWORD 's3cret-word'")
    server.sql("GRANT CREATE ON DATABASE postgres TO history")
    server.password_only("history")
    url = f"postgresql+psycopg://history@127.0.0.1:{server.port}/postgres"
    with pytest.raises(StateError, match="open state: ") as refused:
        open_state(url, clock=SystemClock(), password=Secret(b"wr0ng-word"))
    assert not refused.value.retryable
    assert "wr0ng-word" not in f"{refused.value.message} {refused.value.hint}"
    with open_state(url, clock=SystemClock(), password=Secret(b"s3cret-word")) as state:
        state.jobs.add(backup())
        server.restart()
        assert state.jobs.count() == 1
        server.stop()
        with pytest.raises(StateUnavailable) as away:
            state.jobs.count()
        assert away.value.retryable
        server.start()
        assert state.jobs.count() == 1


def test_a_role_that_may_not_make_the_tables_is_told_what_it_lacks(server: Server, server_url: str) -> None:
    server.sql("CREATE ROLE onlooker LOGIN")
    try:
        url = server_url.replace("postgres@", "onlooker@")
        with pytest.raises(StateError, match="prepare state: permission denied for database") as refused:
            open_state(url, clock=SystemClock())
        assert "GRANT CREATE ON DATABASE" in refused.value.hint
    finally:
        server.sql("DROP ROLE onlooker")


def test_values_and_config_need_no_database_library() -> None:
    words = (
        "import sys, datamanager.state.model, datamanager.config.model, datamanager.app.context, datamanager.cli.main"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{words}; print([m for m in ('sqlalchemy', 'alembic') if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
        cwd=CHECKOUT,
    )
    assert done.stdout.strip() == "[]"


def test_opening_again_does_not_load_what_makes_tables(file_url: str, clock: MovedClock) -> None:
    open_state(file_url, clock=clock).close()
    text = (
        "import sys; from datamanager.base.clock import SystemClock\n"
        "from datamanager.state.database import open_state\n"
        "open_state(sys.argv[1], clock=SystemClock()).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text, file_url], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert done.stdout.strip() == "False"


def test_a_file_keeps_its_contents_as_sqlite_knows_them(file_url: str, clock: MovedClock) -> None:
    """Any tool can read the history."""
    with open_state(file_url, clock=clock) as state:
        state.jobs.add(backup())
    path = sqlite_path(file_url)
    assert path is not None
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        row = connection.execute("SELECT kind, subject, state, queued FROM jobs").fetchone()
    assert row == ("backup run", "clinic", "queued", "2026-11-23T06:00:00.123456Z")
