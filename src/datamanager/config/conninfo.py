"""Connection strings and addresses as they may stand in a configuration: without any secret."""

from __future__ import annotations

from urllib.parse import urlsplit

from datamanager.base.errors import ConfigurationError
from datamanager.postgres.connection import ServerAddress

_SECRETS = ("password", "sslpassword", "oauth_client_secret")


def check_conninfo(conninfo: str) -> None:
    """Raises: ConfigurationError, for an unreadable string and for one that holds a secret; it is never repeated."""
    given = ServerAddress(conninfo).parameters()
    found = [name for name in _SECRETS if given.get(name)]
    if found:
        raise ConfigurationError(
            f"read connection string: it holds a {found[0]}, which does not belong in a configuration",
            hint="Leave it out, and use PostgreSQL's password file (pgpass) or service file, or --password-file FILE.",
        )


def check_url(url: str) -> None:
    """Raises: ConfigurationError, for an address that holds a password; it is never repeated."""
    try:
        password = urlsplit(url).password if "://" in url else None
    except ValueError:
        password = None
    if password:
        raise ConfigurationError(
            "read address: it holds a password, which does not belong in a configuration",
            hint="Leave it out of the address.",
        )
