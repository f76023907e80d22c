"""Every run leaves a log that says what was done, and no secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.caller import PASSPHRASE, Installation
from tests.conftest import NewServer
from tests.servers import Server


@pytest.mark.requirement("R96")
def test_there_are_as_many_logs_as_runs_whatever_their_end(installation: Installation) -> None:
    installation.init()
    runs: list[tuple[str, ...]] = [
        ("repo", "list"), ("repo", "check"), ("backup", "list"), ("backup", "run", "nobody"), ("cluster", "list"),
        ("config", "show"), ("logs", "path"), ("restore", "latest", "--target", "x"), ("repo", "list"),
    ]  # fmt: skip
    codes = [installation.run(*words).code for words in runs]
    logs = installation.logs()
    assert len(logs) == 1 + len(runs)
    ends = sorted(path.read_text(encoding="utf-8").rsplit("exit code ", 1)[1].strip() for path in logs)
    assert ends == sorted(map(str, [0, *codes]))


def test_the_newest_ten_logs_of_each_command_stay(installation: Installation) -> None:
    installation.ok("cluster", "list")
    for _ in range(12):
        installation.ok("config", "show")
    names = [path.name for path in installation.logs()]
    assert len([name for name in names if name.startswith("config-show-")]) == 10
    assert len([name for name in names if name.startswith("cluster-list-")]) == 1


def test_the_log_of_a_backup_names_what_was_said_to_the_server(installation: Installation, server: Server) -> None:
    installation.init()
    installation.ok("cluster", "add", "clinic", server.dsn)
    installation.ok("backup", "run", "clinic", "--name", "it's night")
    (path,) = (installation.home / "logs").glob("backup-run.clinic-*.log")
    log = path.read_text(encoding="utf-8")
    for said in ("CREATE_REPLICATION_SLOT", "BASE_BACKUP (LABEL 'it''s night'", "FROM pg_settings", "result: Backup"):
        assert said in log
    typed = re.escape("datamanager backup run clinic --name 'it'\"'\"'s night'")
    assert re.search(rf"\n\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z started: {typed}\n", log)


def test_a_home_that_cannot_be_written_costs_the_log_and_is_said(installation: Installation) -> None:
    installation.home.write_text("a file where the home should be")
    done = installation.run("logs", "path")
    assert done.code == 3
    assert "warning: this run leaves no log" in done.out


def test_no_secret_is_in_any_log_output_or_configuration(installation: Installation, new_server: NewServer) -> None:
    server = new_server()
    password = "Zq7-not-for-anyone"
    server.sql(f"CREATE ROLE keeper SUPERUSER LOGIN REPLICATION PASSWORD '{password}'")
    server.password_only("keeper")
    password_file = installation.secret_file("server password", password)
    installation.init()
    code = installation.recovery_code().replace("-", "")
    key = (installation.home / "keys" / "usb.key").read_text("utf-8").split()[1]
    conninfo = f"host={server.host} port={server.port} user=keeper"
    said = [
        installation.ok("cluster", "add", "clinic", conninfo, "--password-file", password_file),
        installation.ok("backup", "run", "clinic", "--json"),
        installation.run("cluster", "add", "again", f"{conninfo} password={password}"),
        installation.run("cluster", "set", "clinic", f"conninfo={conninfo} password={password}"),
        installation.run("config", "set", "clusters.clinic.conninfo", f"{conninfo} password={password}"),
        installation.run("backup", "list", "--repo", installation.folder / "repository of usb"),
        installation.ok("repo", "key", "list", "usb"),
        installation.ok("config", "export"),
    ]
    assert [done.code for done in said] == [0, 0, 10, 10, 10, 0, 0, 0]
    texts = [done.out + done.errors for done in said]
    texts += [path.read_text("utf-8") for path in installation.logs()]
    texts.append((installation.home / "config.toml").read_text("utf-8"))
    assert len(texts) > len(said)
    for secret in (password, PASSPHRASE, code, key):
        assert not [text for text in texts if secret in text.replace("-", "") or secret in text]


def test_a_password_written_into_the_file_by_hand_is_never_shown(installation: Installation, server: Server) -> None:
    installation.home.mkdir()
    secret = "hunter2-in-the-file"
    file = installation.home / "config.toml"
    file.write_text(f'[clusters.clinic]\nconninfo = "host={server.host} password={secret}"\n', encoding="utf-8")
    for words in (("config", "show"), ("config", "export"), ("cluster", "list"), ("backup", "run", "clinic")):
        done = installation.run(*words)
        assert done.code == 10
        assert "it holds a password" in done.errors
        assert secret not in done.out + done.errors
    assert not [path for path in installation.logs() if secret in path.read_text("utf-8")]


def test_logs_are_for_their_owner_alone(installation: Installation) -> None:
    installation.ok("cluster", "list")
    (log,) = installation.logs()
    assert log.stat().st_mode & 0o077 == 0
    assert Path(log.parent).stat().st_mode & 0o077 == 0
