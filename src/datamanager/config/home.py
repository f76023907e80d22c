"""Where this program keeps its own files.

    config folder   config.toml, keys/NAME.key
    state folder    logs/

``DATAMANAGER_HOME`` wins and is both; else ``/etc/datamanager`` with ``/var/lib/datamanager`` where the first exists
(POSIX, so that every account finds the same); else the account's own folders as platformdirs names them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from datamanager.base.errors import ConfigurationError

VARIABLE = "DATAMANAGER_HOME"
_SYSTEM_CONFIG, _SYSTEM_STATE = Path("/etc/datamanager"), Path("/var/lib/datamanager")


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of one installation; either may not exist yet."""

    config: Path
    state: Path

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"

    @property
    def keys(self) -> Path:
        return self.config / "keys"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def key_file(self, repository: str) -> Path:
        """Where the key file of a repository lies."""
        return self.keys / f"{repository}.key"


def find_home(environment: Mapping[str, str]) -> Home:
    """The home that this account uses. Raises: ConfigurationError, for a relative DATAMANAGER_HOME."""
    named = environment.get(VARIABLE, "")
    if named:
        folder = Path(named)
        if not folder.is_absolute():
            raise ConfigurationError(
                f"find home: {VARIABLE} is not an absolute path", hint=f"Set {VARIABLE} to an absolute path."
            )
        return Home(folder, folder)
    if os.name != "nt" and _SYSTEM_CONFIG.is_dir():
        return Home(_SYSTEM_CONFIG, _SYSTEM_STATE)
    return Home(
        platformdirs.user_config_path("datamanager", appauthor=False),
        platformdirs.user_state_path("datamanager", appauthor=False),
    )


def make_private_folder(folder: Path) -> None:
    """Make a folder that only this account enters, and its parents. Raises: ConfigurationError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"make folder {folder}: {(error.strerror or 'not possible').lower()}",
            hint=f"Run this as an account that may write there, or set {VARIABLE} to a folder of your own.",
        ) from error


def inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or lies in it, links resolved; either may not exist yet."""
    real, outer = path.resolve(), folder.resolve()
    return real == outer or outer in real.parents
