"""From a server as ``initdb`` left it to an increment, running nothing but what the program itself prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.cli.caller import Done, Installation
from tests.servers import Server, binaries, hand_over, make_folder
from tests.servers.processes import run_program

# Whatever stands in backquotes and can be run: a command of ours, or SQL.
_COMMAND = re.compile(r"`(datamanager [^`]+)`")
_SQL = re.compile(r"`((?:ALTER|CREATE|GRANT|SELECT)\b[^`]*;)`")
MOST_ROUNDS = 5


@pytest.fixture
def bare_server(pg_version: str) -> Iterator[Server]:
    """``initdb`` and a start; only socket folder and port are given, on the command line."""
    folder = make_folder("bare")
    data = folder / "data"
    run_program([binaries(pg_version) / "initdb", "-D", data, "-U", Server.superuser])
    hand_over(folder)
    server = Server(pg_version, data, folder)
    try:
        server.start()
        yield server
    finally:
        server.destroy()


def run_what_is_printed(installation: Installation, server: Server, said: Done) -> list[str]:
    """Run each printed command once, in the order printed, and return them."""
    text = said.out + said.errors
    commands = list(dict.fromkeys(_COMMAND.findall(text)))
    for command in commands:
        installation.run(*shlex.split(command)[1:])
    statements = list(dict.fromkeys(_SQL.findall(text)))
    for statement in statements:
        server.sql(statement)
    return commands + statements


def made_native(installation: Installation, server: Server, said: Done) -> int:
    """Back up, running whatever each command printed, until a backup is an increment; returns the backups made."""
    for count in range(1, MOST_ROUNDS):
        run_what_is_printed(installation, server, said)
        server.sql("update visits set who = who || '.' where id % 1000 = 0")
        said = installation.ok("backup", "run", "office")
        if installation.ok("backup", "show", "latest", "--json").last["method"] == "native":
            return count
    raise AssertionError(said.out)


def prepare(installation: Installation, server: Server, *words: str) -> Done:
    """A table, a repository, and the cluster added."""
    server.sql("create table visits as select n as id, 'patient ' || n as who from generate_series(1, 20000) n")
    assert server.value("show summarize_wal") == "off"
    installation.init()
    return installation.ok("cluster", "add", "office", server.dsn, "--repo", "usb", *words)


@pytest.mark.pg("17-18")
@pytest.mark.decision(20)
def test_the_printed_commands_lead_from_initdb_to_an_increment(installation: Installation, bare_server: Server) -> None:
    said = prepare(installation, bare_server)
    assert made_native(installation, bare_server, said) == 2
    assert "The next backup can be an increment" in installation.run("cluster", "check", "office").out


@pytest.mark.decision(20)
def test_whoever_did_not_heed_it_is_told_by_the_backup_that_reads_everything_again(
    installation: Installation, bare_server: Server
) -> None:
    said = prepare(installation, bare_server, "--no-settings")
    # The first reads everything anyhow; the second says what would have made it short; the third is.
    assert made_native(installation, bare_server, said) in (3, 4)
