"""The state that the configuration names, and where it must not lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from datamanager.app.context import Context
from datamanager.base.clock import SystemClock
from datamanager.base.errors import ConfigurationError, StateError
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.jobs.run_file import RunFile, RunFolder
from datamanager.state.model import Job, JobRequest, JobState
from datamanager.system.processes import this_process
from tests.conftest import NewServer
from tests.servers import Server


class Contexts(Protocol):
    """``contexts(text)`` is a context whose configuration is ``text``."""

    def __call__(self, text: str = "") -> Context: ...


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[Contexts]:
    home = tmp_path / "home"
    home.mkdir()
    stop = StopToken()

    def make(text: str = "") -> Context:
        (home / "config.toml").write_text(text)
        return Context(Home(home, home), SystemClock(), stop, ignore)

    yield make
    stop.close()


def clusters(*addresses: str) -> str:
    return "".join(f'[clusters.c{number}]\nconninfo = "{text}"\n' for number, text in enumerate(addresses))


def test_without_a_word_the_state_is_a_file_of_the_home(contexts: Contexts) -> None:
    context = contexts()
    with context.state() as state:
        state.jobs.add(JobRequest("backup run"))
    with context.state() as state:
        assert state.jobs.count() == 1
    assert context.home.state_file.is_file()


def test_the_configured_server_holds_the_state(contexts: Contexts, tmp_path: Path, new_server: NewServer) -> None:
    server = new_server()
    server.sql("CREATE ROLE history LOGIN PASSWORD 's3cret-word'")
    server.sql("CREATE DATABASE history OWNER history")
    server.password_only("history")
    password = tmp_path / "password"
    password.write_text("s3cret-word\n")
    password.chmod(0o600)
    url = f"postgresql://history@127.0.0.1:{server.port}/history"
    context = contexts(f'[state]\nurl = "{url}"\npassword_file = "{password}"\n')
    with context.state() as state:
        state.jobs.add(JobRequest("backup run"))
    assert server.value("SELECT count(*) FROM datamanager.jobs", database="history") == 1
    assert not context.home.state_file.exists()
    password.write_text("other\n")
    with pytest.raises(StateError), context.state():
        pass


def test_a_state_inside_a_protected_cluster_is_refused_before_anything_is_made(
    contexts: Contexts, server: Server
) -> None:
    # The cluster is reached by another way than the state.
    text = f'[state]\nurl = "postgresql://postgres@127.0.0.1:{server.port}/postgres"\n' + clusters(server.dsn)
    with (
        pytest.raises(ConfigurationError, match="names a database in cluster c0") as refused,
        contexts(text).state(),
    ):
        pass
    assert "config set state.url" in refused.value.hint
    assert server.value("SELECT to_regnamespace('datamanager')") is None


def test_a_cluster_of_the_same_address_is_refused_though_it_says_nothing(contexts: Contexts, server: Server) -> None:
    address = f"host=127.0.0.1 port={server.port} user=nobody_of_that_name dbname=postgres"
    text = f'[state]\nurl = "postgresql://postgres@127.0.0.1:{server.port}/postgres"\n' + clusters(address)
    with (
        pytest.raises(ConfigurationError, match="names a database in cluster c0"),
        contexts(text).state(),
    ):
        pass


def test_another_cluster_is_asked_once_who_it_is(contexts: Contexts, server: Server, new_server: NewServer) -> None:
    protected = new_server()
    server.sql("CREATE DATABASE history")
    try:
        url = f"postgresql://postgres@127.0.0.1:{server.port}/history"
        away = "host=127.0.0.1 port=1 user=postgres connect_timeout=2"
        context = contexts(f'[state]\nurl = "{url}"\n' + clusters(protected.dsn, away))
        with context.state() as state:
            known = state.known.clusters()
        identifier = protected.value("SELECT system_identifier FROM pg_control_system()")
        assert [(one.name, one.system_identifier) for one in known] == [("c0", str(identifier))]
        protected.stop()
        with context.state() as state:
            assert state.known.clusters() == known
        # What is remembered is enough to refuse.
        own = server.value("SELECT system_identifier FROM pg_control_system()")
        server.sql(f"UPDATE datamanager.clusters SET system_identifier = '{own}'", database="history")
        with pytest.raises(ConfigurationError, match="names a database in cluster c0"), context.state():
            pass
    finally:
        server.sql("DROP DATABASE history WITH (FORCE)")


def test_runs_that_have_ended_are_in_the_state_when_it_opens(contexts: Contexts) -> None:
    context = contexts()
    job = Job("20261123T060000Z-abc123", JobRequest("backup run", subject="c0"), JobState.DONE, context.clock.now())
    folder = RunFolder(context.home.runs)
    folder.make()
    folder.write(RunFile(job, this_process()), durable=True)
    with context.state() as state:
        assert [one.id for one in state.jobs.list()] == [job.id]
    assert list(context.home.runs.glob("*.json")) == []
