"""Which servers are on this host, and what a backup is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from datamanager.app.addresses import address_of, is_local, local_directory
from datamanager.app.backups import RunOptions, backup_name
from datamanager.base.errors import ConfigurationError
from datamanager.config.model import ClusterConfig
from datamanager.postgres.connection import ServerAddress


@pytest.mark.parametrize(
    ("conninfo", "local"),
    [
        ("", True), ("host=/run/postgresql", True), ("host=localhost", True), ("host=127.0.0.1 port=5433", True),
        ("hostaddr=127.0.0.1 host=db.example", True), ("host=192.0.2.7", False), ("host=127.0.0.1,192.0.2.7", False),
        ("service=office", False), ("host=no-such-host.invalid", False),
    ],
)  # fmt: skip
def test_a_server_is_local_when_every_address_is_ours(conninfo: str, local: bool) -> None:
    assert is_local(ServerAddress(conninfo)) is local
    expected = Path("/data") if local else None
    assert local_directory(ServerAddress(conninfo), "/data") == expected


def test_a_password_comes_from_its_file_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text("hunter2\n")
    cluster = ClusterConfig.model_validate({"conninfo": "host=localhost user=x", "password_file": path})
    address = address_of(cluster)
    assert address.secrets() == ("hunter2",)
    assert "hunter2" not in repr(address) + repr(cluster)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="other accounts may read"):
        address_of(cluster)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        (UTC, "office 2026-11-03 0107 UTC"),
        (timezone(timedelta(hours=5, minutes=30)), "office 2026-11-03 0107 UTC+0530"),
        (timezone(-timedelta(hours=8)), "office 2026-11-03 0107 UTC-0800"),
    ],
)
def test_an_appended_date_is_local_and_names_its_zone(zone: timezone, expected: str) -> None:
    now = datetime(2026, 11, 3, 1, 7, tzinfo=zone)
    assert backup_name(RunOptions("office", append_date=True), now) == expected


def test_without_a_name_a_backup_is_called_like_its_cluster() -> None:
    assert backup_name(RunOptions("office"), datetime.now(UTC)) == "office"
