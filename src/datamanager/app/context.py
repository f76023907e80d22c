"""What every use case gets: where the home is, the clock, how to stop, whom to tell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datamanager.base.clock import Clock
from datamanager.base.errors import NotFound
from datamanager.base.events import Executed, Listener
from datamanager.base.pipeline import StopToken
from datamanager.config import store
from datamanager.config.home import Home
from datamanager.config.model import ClusterConfig, Config, RepositoryConfig

if TYPE_CHECKING:
    from datamanager.state.database import State


@dataclass(frozen=True)
class Context:
    """One run. The configuration is read anew at each call, so an edit during a long run is never half seen."""

    home: Home
    clock: Clock
    stop: StopToken
    listener: Listener

    def executed(self, text: str) -> None:
        """Tell of a command or SQL statement that is about to run."""
        self.listener(Executed(text))

    def config(self) -> Config:
        """Raises: ConfigurationError."""
        return store.load(self.home.config_file)

    def edit(self) -> store.ConfigEditor:
        """Raises: ConfigurationError."""
        return store.ConfigEditor(self.home.config_file)

    @contextlib.contextmanager
    def state(self) -> Iterator[State]:
        """The database of history, schedules, alerts and audit, with the runs that have ended meanwhile.

        Raises: ConfigurationError, FormatUnsupported, StateUnavailable (retryable), StateError.
        """
        # SQLAlchemy takes 0.2 s to import, which no backup should wait for.
        from datamanager.app.state import open_configured  # noqa: PLC0415

        with open_configured(self.home, self.config(), self.clock, self.stop, self.executed) as state:
            yield state

    def cluster(self, name: str) -> ClusterConfig:
        """Raises: NotFound, ConfigurationError."""
        clusters = self.config().clusters
        if name not in clusters:
            raise NotFound(
                f"find cluster: no cluster is named {name!r}",
                hint=_known(sorted(clusters), "clusters") or "Add it with `datamanager cluster add NAME CONNINFO`.",
            )
        return clusters[name]

    def repository(self, name: str) -> RepositoryConfig:
        """Raises: NotFound, ConfigurationError."""
        repositories = self.config().repositories
        if name not in repositories:
            raise NotFound(
                f"find repository: no repository is named {name!r}",
                hint=_known(sorted(repositories), "repositories")
                or "Make one with `datamanager repo init NAME URL`, or give the address of one.",
            )
        return repositories[name]


def _known(names: list[str], what: str) -> str:
    return f"The {what} here are: {', '.join(names)}." if names else ""
