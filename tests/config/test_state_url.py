"""The address of the state: a file or a PostgreSQL, never with a secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamanager.base.errors import ConfigurationError
from datamanager.base.units import Secret
from datamanager.config.state_url import server_address, sqlite_path, sqlite_url
from datamanager.config.store import ConfigEditor, load


@pytest.mark.parametrize("name", ["/var/lib/datamanager/state.sqlite", "/home/Büro 1/100%41 #?/state.sqlite"])
def test_the_address_of_a_file_leads_to_it(name: str) -> None:
    assert sqlite_path(sqlite_url(Path(name))) == Path(name)


@pytest.mark.parametrize("prefix", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_address_of_a_server_is_one_of_libpq(prefix: str) -> None:
    address = server_address(f"{prefix}://anna@db.example:5433/history?sslmode=require", Secret(b"word"))
    assert address is not None
    assert address.parameters() == {
        "user": "anna",
        "host": "db.example",
        "port": "5433",
        "dbname": "history",
        "sslmode": "require",
    }
    assert sqlite_path("postgresql://db.example/history") is None
    assert server_address("sqlite:////state.sqlite") is None


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("sqlite:///state.sqlite", "no absolute path"),
        ("sqlite:state.sqlite", "no absolute path"),
        ("mysql://host/db", "neither sqlite"),
        ("/var/lib/state.sqlite", "neither sqlite"),
        ("postgresql://anna:s3cret@host/db", "holds a password"),
        ("postgresql://anna@host/db?password=s3cret", "holds a password"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_secret(tmp_path: Path, url: str, cause: str) -> None:
    editor = ConfigEditor(tmp_path / "config.toml")
    editor.set_text("state", None, "url", url)
    with pytest.raises(ConfigurationError, match=cause) as refused:
        editor.save()
    assert "s3cret" not in f"{refused.value.message} {refused.value.hint}"


def test_the_address_is_an_option_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert load(file).state.url is None
    editor = ConfigEditor(file)
    editor.set_text("state", None, "url", "postgresql://anna@host/history")
    editor.set_text("state", None, "password_file", "/etc/datamanager/keys/state.secret")
    assert editor.save() == load(file)
    state = load(file).state
    assert (state.url, state.password_file) == (
        "postgresql://anna@host/history",
        Path("/etc/datamanager/keys/state.secret"),
    )
