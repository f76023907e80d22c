"""Where the state's database is: a SQLite file of ours, or a PostgreSQL that many machines share."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

from datamanager.base.errors import ConfigurationError
from datamanager.base.units import Secret
from datamanager.config.conninfo import check_conninfo
from datamanager.postgres.connection import ServerAddress

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql+psycopg://", "postgresql://", "postgres://")


def sqlite_url(path: Path) -> str:
    """The address of a SQLite file."""
    return _SQLITE + quote(path.as_posix(), safe="/:")


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite address; None for another kind. Raises: ConfigurationError, when it is not absolute."""
    if not url.startswith("sqlite:"):
        return None
    path = Path(unquote(url.removeprefix(_SQLITE)))
    if not url.startswith(_SQLITE) or not path.is_absolute():
        raise ConfigurationError(
            "read state.url: the file has no absolute path",
            hint="Write it as sqlite:////var/lib/datamanager/state.sqlite, with four strokes.",
        )
    return path


def server_address(url: str, password: Secret | None = None) -> ServerAddress | None:
    """The PostgreSQL server of an address; None for another kind."""
    for prefix in _POSTGRES:
        if url.startswith(prefix):
            return ServerAddress("postgresql://" + url.removeprefix(prefix), password)
    return None


def check_state_url(url: str) -> None:
    """Raises: ConfigurationError, for an address of another kind and for one that holds a secret."""
    if sqlite_path(url) is not None:
        return
    address = server_address(url)
    if address is None:
        raise ConfigurationError(
            "read state.url: it is neither sqlite:///… nor postgresql://…",
            hint="Leave state.url out for a file of our own, or name a PostgreSQL as postgresql://USER@HOST/DATABASE.",
        )
    check_conninfo(address.conninfo)
