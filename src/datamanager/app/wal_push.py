"""One file of WAL into a cluster's archive, for ``archive_command``: loaded once a segment, so it loads little.

Of the configuration it reads the few options that it needs, without the model that checks the whole file: that takes
longer to import than a segment takes to store. It fails early, for PostgreSQL tries again for ever.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from datamanager.app.wal_archive import check_system
from datamanager.base.clock import SystemClock
from datamanager.base.errors import ConfigurationError, NotFound, UsageError, WalForeign, WrongSecret
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home, find_home, inside
from datamanager.config.secret_files import read_secret_file
from datamanager.engine.wal.push import Pushed, push_segment
from datamanager.postgres.wal.names import SEGMENT
from datamanager.repository.format import WAL_FOLDER
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.repository.wal.archive import WalArchive
from datamanager.storage.registry import local_path, open_storage
from datamanager.storage.retry import RetryingStorage, RetryPolicy

_POLICY = RetryPolicy(attempts=3, first_seconds=0.2)
_SYSTEM_OFFSET = 24  # of the system identifier in the first page of a segment
_IN_CONTROL_FILE = 0


def push(path: Path, cluster: str, repository: str | None) -> Pushed:
    """Store one file of ``pg_wal``, durably; the same bytes there already are a success.

    Args: path - as PostgreSQL's ``%p``, relative to the data directory in which it runs the command.
    Raises: NotFound (no such cluster, repository or file), UsageError, ConfigurationError, WrongSecret, WalForeign,
        WalContradicts, StoreError, IntegrityError.
    """
    where = path.absolute()
    url, secret = _destination(find_home(os.environ), cluster, repository)
    clock = SystemClock()
    with StopToken() as stop:
        storage = RetryingStorage(open_storage(url, growing=[WAL_FOLDER]), stop, _POLICY)
        try:
            opened = Repository.open(storage, secret, clock)
            system = _system_of(where)
            check_system(opened, cluster, system)
            return push_segment(WalArchive(opened, system), where, cluster, clock)
        finally:
            storage.close()


def _destination(home: Home, cluster: str, repository: str | None) -> tuple[str, SlotSecret]:
    """The address of the repository and what opens it.

    Raises: NotFound, UsageError, ConfigurationError, WrongSecret.
    """
    config = _read(home.config_file)
    clusters, repositories = config.get("clusters", {}), config.get("repositories", {})
    if cluster not in clusters:
        raise NotFound(
            f"find cluster: no cluster is named {cluster!r}",
            hint=f"Run this with DATAMANAGER_HOME set, or as an account that reads {home.config_file}.",
        )
    name = repository or clusters[cluster].get("repository")
    if name is None and len(repositories) == 1:
        name = next(iter(repositories))
    if name is None:
        raise UsageError(f"push WAL: cluster {cluster} has no repository", hint="Name one with --repo.")
    if name not in repositories:
        raise NotFound(f"find repository: no repository is named {name!r}")
    return str(repositories[name]["url"]), _secret(name, repositories[name])


def _secret(name: str, repository: dict[str, Any]) -> SlotSecret:
    if repository.get("open") is True:
        return SlotSecret.open()
    if "key_file" not in repository:
        raise WrongSecret(
            f"open repository: no key for {name} is at hand", hint=f"Set repositories.{name}.key_file to a key file."
        )
    file = Path(str(repository["key_file"]))
    folder = local_path(str(repository["url"]))
    if folder is not None and inside(file, folder):
        raise ConfigurationError(f"open repository: its key file {file} lies inside it")
    return SlotSecret.from_key_file(read_secret_file(file, "key file"))


def _read(path: Path) -> dict[str, Any]:
    """Raises: ConfigurationError."""
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
        for section in ("clusters", "repositories"):
            if not all(isinstance(one, dict) for one in config.get(section, {}).values()):
                raise ValueError(f"{section} has something that is no section")
        for name, one in config.get("repositories", {}).items():
            if "url" not in one:
                raise ValueError(f"repositories.{name} has no url")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"read {path}: {(error.strerror or 'cannot be read').lower()}") from error
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"read {path}: {error}", hint="Mend that line; the file is in TOML.") from error
    return config


def _system_of(path: Path) -> int:
    """The system identifier in a segment's first page; of other files that of the data directory around them.

    Raises: NotFound, WalForeign.
    """
    segment = SEGMENT.match(path.name.removesuffix(".partial")) is not None
    source = path if segment else path.parent.parent / "global" / "pg_control"
    offset = _SYSTEM_OFFSET if segment else _IN_CONTROL_FILE
    try:
        with open(source, "rb") as file:
            file.seek(offset)
            data = file.read(8)
    except FileNotFoundError as error:
        raise NotFound(f"push WAL {path.name}: there is no {source}") from error
    except OSError as error:
        raise ConfigurationError(f"push WAL {path.name}: {(error.strerror or 'cannot be read').lower()}") from error
    system = int.from_bytes(data, "little")
    if len(data) < 8 or not system:
        raise WalForeign(f"push WAL {path.name}: it names no server")
    return system
