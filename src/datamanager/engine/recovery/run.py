"""Restore a backup and replay the archived WAL up to a moment.

1 restore   the backup, whole but for the control file's name: what stops now does not start
2 spool     WAL comes from the repository a few segments ahead (spool.py)
3 replay    a clone that reaches nobody, with an explicit target on an explicit timeline
4 promote   or wait to be looked at, read-only (pause.py)
5 check     that replay ended where it was to end, by what the server itself wrote down
6 finish    everything durable, nothing of the recovery left: a plain cluster on a timeline of its own

Recovery is never open-ended: a target that is not reached stops the server, and whatever keeps WAL from coming does so
too. Source: decisions 1, 3, 12, 13 and 16; PostgreSQL documentation 26.3.4 and 20.5.6.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from datamanager.base.errors import IntegrityError, ServerDidNotStart
from datamanager.base.events import Executed, Listener, PhaseStarted, Progress, Warned
from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.engine.recovery.pause import Paused, wait_until_paused
from datamanager.engine.recovery.replay import Replay
from datamanager.engine.recovery.script import PATIENCE, restore_command
from datamanager.engine.recovery.segments import SegmentReader, segments_of
from datamanager.engine.recovery.spool import Spool, empty_spool
from datamanager.engine.recovery.workplace import Recovered, Workplace
from datamanager.engine.restore.plan import RestorePlan
from datamanager.engine.restore.run import RestoreResult, apply_restore
from datamanager.postgres.account import Account
from datamanager.postgres.clone import prepare_clone
from datamanager.postgres.control_file import parse_control_bytes
from datamanager.postgres.facts_model import ServerFacts
from datamanager.postgres.local_server import LocalServer
from datamanager.postgres.programs import Programs
from datamanager.repository.format import canonical_json
from datamanager.repository.manifest import Manifest
from datamanager.repository.repository import Repository

# Until the end a power cut means that the restore is run again, so nothing is synced on the way.
_SETTINGS = {"fsync": "off", "autovacuum": "off", "max_wal_size": "1GB"}
_STOP_SECONDS = 300.0  # for the checkpoint of a clean stop; at most the clone's 128 MB of buffers
_END_SECONDS = 5.0
_NOT_PAUSED = (
    "the server could not be paused: at that moment a transaction with many subtransactions kept everybody out; it was "
    "promoted instead"
)


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How the recovery is run.

    Args: account - whose the restored files are; pause - do not promote but leave the server to be looked at; port - of
        its socket; patience - of the restore_command, in looks of 0.1 s.
    """

    account: Account
    programs: Programs
    pause: bool = False
    port: int = 5433
    patience: int = PATIENCE


@dataclass(frozen=True, slots=True)
class MomentRestored:
    """What came of it: ``recovered`` once promoted, else ``paused``."""

    restored: RestoreResult
    recovered: Recovered | None
    paused: Paused | None


def restore_to_moment(
    repository: Repository,
    plan: RestorePlan,
    replay: Replay,
    options: RecoveryOptions,
    stop: StopToken,
    listener: Listener,
) -> MomentRestored:
    """Restore and recover. Until the end the directory does not start by itself; a failed one is left for inspection.

    Raises: WalMissing, IntegrityError, StoreError; ServerDidNotStart (replay failed, with the log's last words);
    TargetUnfit, TargetTooSmall, ProgramMissing, Cancelled. Afterwards no process is left, unless it is paused.
    """
    lease = repository.take_lease_if_possible(
        "restore", [plan.manifest.backup], lambda text: listener(Warned(text)), stop=stop
    )
    try:
        restored = apply_restore(repository, plan, stop, listener, startable=False)
        place = Workplace.of(restored.target, plan.links.values(), options.account)
        recovered, paused = _Recovery(place, plan.manifest, replay, options, stop, listener).run()
    finally:
        if lease is not None:
            lease.release()
    return MomentRestored(restored, recovered, paused)


def recover(
    place: Workplace, manifest: Manifest, replay: Replay, options: RecoveryOptions, stop: StopToken, listener: Listener
) -> Recovered:
    """Recover a directory that holds all of a backup, promoted and stopped. Raises: as ``restore_to_moment``."""
    recovered, _ = _Recovery(place, manifest, replay, replace(options, pause=False), stop, listener).run()
    if recovered is None:
        raise IntegrityError(f"recover: {place.target} was not promoted")
    return recovered


class _Recovery:
    """One recovery at work."""

    def __init__(
        self,
        place: Workplace,
        manifest: Manifest,
        replay: Replay,
        options: RecoveryOptions,
        stop: StopToken,
        listener: Listener,
    ) -> None:
        self._place = place
        self._target = place.target
        self._manifest = manifest
        self._replay = replay
        self._options = options
        self._stop = stop
        self._listener = listener
        self._facts = ServerFacts.from_json(canonical_json(manifest.server))
        self._reached = _last_record(replay, manifest, place)
        # Elsewhere the socket lies in a folder of its own, where nobody else can have the port.
        self._port = options.port if options.pause or sys.platform != "win32" else _free_port()

    def run(self) -> tuple[Recovered | None, Paused | None]:
        """Returns: what came of it; one of both."""
        self._listener(PhaseStarted("replaying WAL" if self._replay.target is not None else "recovering"))
        spool = self._spool()
        paused: Paused | None = None
        recovered: Recovered | None = None
        try:
            with spool, self._ending(self._server(spool)) as server:
                self._replay_wal(server, spool)
                paused = self._left_paused(server, spool) if self._options.pause else None
                if paused is None:
                    self._listener(PhaseStarted("stopping the recovered server"))
                    server.stop("fast", limit_seconds=_STOP_SECONDS)
            if paused is None:
                recovered = self._place.complete(self._replay.history.timeline, self._reached)
            return recovered, paused
        finally:
            if paused is None:
                with contextlib.suppress(OSError):
                    empty_spool(spool.folder)
                self._place.remove_side(log=recovered is not None)

    @contextlib.contextmanager
    def _ending(self, server: LocalServer) -> Iterator[LocalServer]:
        """No server outlives a recovery that fails."""
        try:
            yield server
        except BaseException:
            server.stop("immediate", limit_seconds=_END_SECONDS)
            raise

    def _replay_wal(self, server: LocalServer, spool: Spool) -> None:
        """Start the server; on return it is promoted, or in hot standby and on its way."""
        try:
            server.start(self._stop)
        except ServerDidNotStart:
            spool.check()  # what kept the WAL from coming says more than the server does
            raise

    def _left_paused(self, server: LocalServer, spool: Spool) -> Paused | None:
        """Wait for the pause, and leave the server in it. Returns: None if it promoted itself."""
        known = [one.name for one in self._facts.databases if one.allows_connections]
        databases = tuple(dict.fromkeys(["postgres", *known, "template1"]))
        if not wait_until_paused(server, databases, self._reached, self._stop, spool.check):
            self._listener(Warned(_NOT_PAUSED))
            return None
        spool.settle(self._reached)
        manifest = self._manifest
        paused = Paused(
            target=str(self._target),
            links=tuple(str(one) for one in self._place.links),
            socket=str(self._place.socket),
            port=self._port,
            user=self._facts.superuser,
            databases=databases,
            cluster=manifest.cluster,
            backup=manifest.backup,
            major=manifest.major,
            timeline=self._replay.history.timeline,
            reached=str(self._reached),
            server=dict(manifest.server),
        )
        paused.write(self._place.folder)
        return paused

    def _spool(self) -> Spool:
        replay = self._replay
        segments = segments_of(replay.needs, replay.segment_size)
        reader = SegmentReader(replay.needs, replay.segment_size, self._target / "pg_wal")
        total = len(segments) * replay.segment_size
        return Spool(
            self._place.folder,
            self._options.account,
            segments,
            replay.segment_size,
            reader.read,
            replay.history_files(),
            lambda brought: self._listener(Progress(brought * replay.segment_size, total)),
            patience=self._options.patience,
        )

    def _aim(self) -> dict[str, str]:
        """Where the server ends recovery by itself."""
        action = {"recovery_target_action": "pause" if self._options.pause else "promote"}
        if self._replay.target is not None:
            return {
                "recovery_target_lsn": str(self._replay.target),
                "recovery_target_inclusive": "on",
                "recovery_target_timeline": str(self._replay.history.timeline),
                **action,
            }
        if (self._target / "backup_label").exists():
            return {"recovery_target": "immediate", "recovery_target_timeline": "current", **action}
        return {"recovery_target_timeline": "current"}

    def _server(self, spool: Spool) -> LocalServer:
        """The clone that recovers; from here on the directory starts, but not without us. Raises: OSError."""
        options = self._options
        control = parse_control_bytes(self._place.control_file.read_bytes())
        settings = {**_SETTINGS, "track_commit_timestamp": "on" if control.track_commit_timestamp else "off"}
        prepared = prepare_clone(
            self._target,
            self._place.side,
            self._facts,
            port=self._port,
            socket_directory=self._place.socket,
            account=options.account,
            programs=options.programs,
            shared_preload_libraries=self._facts.shared_preload_libraries,
            recovery={"restore_command": restore_command(spool.script), **self._aim()},
            hot_standby=options.pause,
            settings=settings,
        )
        for warning in prepared.warnings:
            self._listener(Warned(warning))
        self._place.open()
        return LocalServer(
            self._target,
            options.programs,
            options.account,
            self._place.socket,
            self._port,
            prepared.options,
            self._place.log,
            user=self._facts.superuser,
            on_executed=lambda text: self._listener(Executed(text)),
        )


def _last_record(replay: Replay, manifest: Manifest, place: Workplace) -> Lsn:
    """Behind which replay must end; of a backup without a label the server itself finds the end of the WAL."""
    if replay.target is not None:
        return replay.target
    return Lsn(Lsn.parse(manifest.stop_lsn) - 1) if (place.target / "backup_label").exists() else Lsn(0)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
