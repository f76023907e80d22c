"""From a configured cluster to its server's address, without a secret ever standing in the configuration."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.base.lazy import lazy
from datamanager.config.model import ClusterConfig
from datamanager.config.secret_files import read_secret_line
from datamanager.postgres.connection import ServerAddress

if TYPE_CHECKING:
    import psutil
else:
    psutil = lazy("psutil")


def address_of(cluster: ClusterConfig) -> ServerAddress:
    """Raises: ConfigurationError, NotFound (no password file)."""
    password = None
    if cluster.password_file is not None:
        password = read_secret_line(cluster.password_file, "password file")
    return ServerAddress(cluster.conninfo, password)


def is_local(address: ServerAddress) -> bool:
    """Whether the server runs on this host: through a socket, or at an address of this machine."""
    parameters = address.parameters()
    named = parameters.get("hostaddr") or parameters.get("host") or ""
    if not named and "service" in parameters:
        return False  # the service file knows, we do not
    return all(_is_here(host) for host in named.split(","))


def local_directory(address: ServerAddress, data_directory: str | None) -> Path | None:
    """The data directory as a path of this host; None for a server elsewhere or one that did not tell."""
    return Path(data_directory) if data_directory and is_local(address) else None


def _is_here(host: str) -> bool:
    if not host or host.startswith(("/", "@")) or host[1:2] == ":":
        return True
    try:
        found = {str(entry[4][0]).split("%")[0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and (all(one == "::1" or one.startswith("127.") for one in found) or found <= _own_addresses())


def _own_addresses() -> set[str]:
    return {one.address.split("%")[0] for many in psutil.net_if_addrs().values() for one in many}
