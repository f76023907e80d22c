"""Where this program keeps its own files.

    config folder   config.toml, keys/NAME.key
    state folder    logs/, runs/, services/, drills/, scratch/, wal/, in-place/, state.sqlite, planner.json

``DATAMANAGER_HOME`` wins and is both; else the home that every account finds, ``/etc/datamanager`` with
``/var/lib/datamanager`` (on Windows ``config`` and ``state`` below ``DataManager`` of ProgramData), where the first
exists; else the account's own folders as platformdirs names them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.base.errors import ConfigurationError
from datamanager.base.lazy import lazy

if TYPE_CHECKING:
    import platformdirs
else:
    platformdirs = lazy("platformdirs")

VARIABLE = "DATAMANAGER_HOME"


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

    @property
    def runs(self) -> Path:
        """What running jobs say of themselves, each in a file, until the database has taken it in."""
        return self.state / "runs"

    @property
    def planner_file(self) -> Path:
        """What the planner says of itself every second or two."""
        return self.state / "planner.json"

    @property
    def run(self) -> Path:
        """What the service keeps only while it runs: its lock, its socket."""
        return self.state / "run"

    @property
    def state_file(self) -> Path:
        """The database of history, schedules, alerts and audit, where no other is named."""
        return self.state / "state.sqlite"

    @property
    def scratch(self) -> Path:
        """Where test restores put what they restore, unless a command names another folder."""
        return self.state / "scratch"

    @property
    def drills(self) -> Path:
        """What running test restores wrote down of their folders, so that the next one can clear up after a kill."""
        return self.state / "drills"

    @property
    def services(self) -> Path:
        """What runs wrote down of the services that they stopped."""
        return self.state / "services"

    @property
    def wal(self) -> Path:
        """What the receivers of WAL say of themselves, their locks, and requests that they end."""
        return self.state / "wal"

    def key_file(self, repository: str) -> Path:
        """Where the key file of a repository lies."""
        return self.keys / f"{repository}.key"

    def channel_secret(self, channel: str) -> Path:
        """Where the password or the address of a channel of notifications lies."""
        return self.keys / f"notify-{channel}.secret"

    @property
    def heartbeat_secret(self) -> Path:
        """Where the address lies that is asked for every minute while all is well."""
        return self.keys / "heartbeat.secret"


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
    system = system_home(environment)
    if system.config.is_dir():
        return system
    return Home(
        platformdirs.user_config_path("datamanager", appauthor=False),
        platformdirs.user_state_path("datamanager", appauthor=False),
    )


def system_home(environment: Mapping[str, str]) -> Home:
    """The home that all accounts share, and with them the service; it may not be there."""
    if os.name == "nt":
        base = Path(environment.get("PROGRAMDATA", r"C:\ProgramData")) / "DataManager"
        return Home(base / "config", base / "state")
    return Home(Path("/etc/datamanager"), Path("/var/lib/datamanager"))


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
