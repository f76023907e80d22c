"""R2: each run's log names every command and SQL statement that it ran, held against the server's own log."""

from __future__ import annotations

import re

import pytest

from tests.cli.caller import Installation
from tests.conftest import NewServer

# What the server logs by itself: parameters are numbered there and marked in ours.
_PARAMETER = re.compile(r"\$\d+|%s")
_VERIFIER = re.compile(r"SCRAM-SHA-256\$|md5[0-9a-f]{32}")
_LOGGED = re.compile(r"(?:statement|execute <unnamed>|received replication command): (.*)")


def normal(statement: str) -> str:
    return " ".join(_PARAMETER.sub("?", statement).split())


@pytest.mark.requirement("R2")
def test_the_log_of_a_backup_names_every_statement_that_the_server_saw(
    installation: Installation, new_server: NewServer
) -> None:
    settings = {"log_statement": "all", "log_replication_commands": "on", "log_line_prefix": "%a|"}
    server = new_server(config=settings)
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn, "--repo", "usb")
    before = len(server.log_file.read_text(encoding="utf-8"))
    installation.ok("backup", "run", "clinic")
    seen = server.log_file.read_text(encoding="utf-8")[before:]
    # A statement of several lines goes on after a tab.
    entries = re.sub(r"\n\t", " ", seen).splitlines()
    statements = {normal(match[1]) for line in entries if (match := _LOGGED.search(line))}
    logs = sorted((installation.home / "logs").glob("backup-run.*.log"))
    told = normal(logs[-1].read_text(encoding="utf-8"))
    assert len(statements) > 10
    assert [one for one in statements if one not in told] == []  # requirement R2
    assert _VERIFIER.search(told) is None
