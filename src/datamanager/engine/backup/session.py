"""What one backup works with: the repository, whom it tells, what it has stored so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datamanager.base.events import Listener, PhaseStarted, Warned
from datamanager.base.pipeline import StopToken
from datamanager.engine.backup.defragment import Scatter
from datamanager.engine.backup.increment_plan import AUDIT_PACE_SECONDS
from datamanager.engine.backup.space import SpaceGuard
from datamanager.postgres.facts import ServerFacts
from datamanager.postgres.outside_model import OutsideFile
from datamanager.postgres.wal_summaries import Summaries
from datamanager.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What the caller decides.

    Args:
        cluster: the name under which the cluster is known here.
        label: for people; stands in the list and in the manifest.
        level: zstd level, 1 to 19.
        threads: threads that compress, 1 or more.
        local: the cluster's data directory lies on this host.
        full: read everything, whatever the server could tell.
        outside: configuration files from outside the data directory.
        control: what pg_control says of a cluster that is not running; empty for a running one.
        warnings: what the caller found, to be recorded with the backup.
        scatter: when parts of the parent are stored anew.
        audit_pace_seconds: how long after an audit an increment audits the next slice.
    """

    cluster: str
    label: str
    level: int = 1
    threads: int = 2
    local: bool = True
    full: bool = False
    outside: tuple[OutsideFile, ...] = ()
    control: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scatter: Scatter = field(default_factory=Scatter)
    audit_pace_seconds: float = AUDIT_PACE_SECONDS


class BackupSession:
    """One backup from its lease to its manifest. ``stored_pack`` may be called from several threads.

    Args: facts - of the cluster, as its server or its files tell them.
    """

    def __init__(
        self, repository: Repository, facts: ServerFacts, options: BackupOptions, stop: StopToken, listener: Listener
    ) -> None:
        self.repository = repository
        self.facts = facts
        self.options = options
        self.stop = stop
        self.listener = listener
        self.guard = SpaceGuard(repository.storage, (facts.data_directory or "") if options.local else "")
        self.summaries = Summaries()
        self.warnings: list[str] = []
        self._put: list[int] = []  # several threads put packs, and an append is one step

    @property
    def stored(self) -> int:
        """Bytes of the packs put so far."""
        return sum(self._put)

    def stored_pack(self, size: int) -> None:
        self._put.append(size)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.listener(Warned(message))

    def warn_once(self, message: str) -> None:
        if message not in self.warnings:
            self.warn(message)

    def phase(self, name: str) -> None:
        self.listener(PhaseStarted(name))
