"""A backup written over a cluster's own data directory, for a volume that does not hold the data twice. No way back.

    STOPPING    the server is being stopped, its configuration saved; nothing was changed
    CHANGING    engine/restore/delta.py writes what differs, then the backup is recovered and promoted. The directory
                does not start by itself: pg_control is away; later postgresql.auto.conf keeps everybody out, wherever
                the configuration lies
    RECOVERED   a whole cluster on a timeline of its own; the configuration comes back, the server starts

Each is written down beside the data directory before it begins, so a second run of the command goes on, or one for
another moment in its place; it needs the configuration, which lies beside as well, and the repository again.
Source: PostgreSQL decisions 11 and 12.
"""

from __future__ import annotations

import enum
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamanager.base.errors import Busy, DataManagerError, IntegrityError, RestoreRefused, TargetUnfit
from datamanager.base.events import Executed, Listener, PhaseStarted, Touched, Warned
from datamanager.base.files import remove_leftovers, sync_folder, write_durably
from datamanager.base.pipeline import StopToken
from datamanager.engine.in_place.act import alone, wait_until_stopped
from datamanager.engine.in_place.configuration import announce_history, configuration_of, copy_configuration
from datamanager.engine.in_place.journal import require_abandoned_by
from datamanager.engine.in_place.kept import control_of_directory, read_own, remove_tree
from datamanager.engine.in_place.places import Places
from datamanager.engine.in_place.recovery import Finished
from datamanager.engine.restore.delta import DeltaResult
from datamanager.engine.restore.delta_target import drop_journal as drop_unfinished
from datamanager.engine.restore.delta_target import read_journal as read_unfinished
from datamanager.postgres.control_file import STOPPED
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.server_control import ServerControl, control_of
from datamanager.system.processes import ProcessIdentity, end_tree, this_process
from datamanager.system.services import ServiceManager

_FORMAT = 2
_CLONE_SECONDS = 5.0
_SETTINGS, _LOCK = "postgresql.conf", "postgresql.auto.conf"
_AGAIN = "Run the same command again: it goes on, and until then the data directory does not start."


# Writes what differs. Told what to call before the directory can start, and what once it can.
Write = Callable[[Callable[[Path], None], Callable[[Path], None]], DeltaResult]


class Phase(enum.StrEnum):
    STOPPING = "stopping"
    CHANGING = "changing"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Record:
    """One delta restore in place.

    Args:
        cluster, backup: what is restored.
        words: of the command, after ``restore``; the same goes on.
        moment: where it ends, for people.
        replay: the WAL that is replayed onto the backup (``replay_to_json``); None for the backup's own end.
        control: how the server is stopped and started (ServerControl.record); running - whether it ran.
        histories: of the timelines that somebody has begun, by file name.
        configuration: the files that were saved, see ``configuration_of``.
    """

    identity: str
    phase: Phase
    process: ProcessIdentity
    places: Places
    cluster: str
    backup: str
    words: tuple[str, ...]
    moment: str
    replay: Mapping[str, Any] | None
    control: Mapping[str, Any]
    running: bool
    start_seconds: float
    histories: Mapping[str, bytes]
    configuration: tuple[str, ...] = ()

    @property
    def saved(self) -> Path:
        """Takes the configuration."""
        return self.places.configuration(self.identity)

    @property
    def wal(self) -> Path:
        """Takes WAL on its way into the recovery."""
        return self.places.wal(self.identity)

    @property
    def command(self) -> str:
        """What goes on with it."""
        options = ("--cluster", self.cluster, "--in-place", "--delta", "--confirm", self.cluster)
        return shlex.join(("datamanager", "restore", *self.words, *options))

    @property
    def taken(self) -> set[int]:
        return {int(name[:8], 16) for name in self.histories}

    def write(self) -> None:
        """Raises: OSError."""
        value = {
            "format": _FORMAT,
            "identity": self.identity,
            "phase": self.phase.value,
            "process": [self.process.pid, self.process.started, self.process.boot],
            "data_directory": str(self.places.data_directory),
            "whole": self.places.whole,
            "cluster": self.cluster,
            "backup": self.backup,
            "words": list(self.words),
            "moment": self.moment,
            "replay": None if self.replay is None else dict(self.replay),
            "control": dict(self.control),
            "running": self.running,
            "start_seconds": self.start_seconds,
            "histories": {name: data.decode("latin-1") for name, data in self.histories.items()},
            "configuration": [os.fsencode(name).decode("latin-1") for name in self.configuration],
        }
        write_durably(self.places.delta, (json.dumps(value, indent=1) + "\n").encode(), mode=0o600)


def find_record(data_directory: Path) -> Record | None:
    """The record of a delta restore that is not complete. Raises: IntegrityError, RightMissing."""
    real = Path(os.path.realpath(data_directory))
    path = next((one for whole in (True, False) if (one := Places(real, whole).delta).is_file()), None)
    if path is None:
        return None
    try:
        value = json.loads(read_own(path))
        if value["format"] != _FORMAT:
            raise ValueError("a newer program wrote it")
        pid, started, boot = value["process"]
        record = Record(
            str(value["identity"]),
            Phase(value["phase"]),
            ProcessIdentity(int(pid), float(started), str(boot)),
            Places(Path(value["data_directory"]), bool(value["whole"])),
            str(value["cluster"]),
            str(value["backup"]),
            tuple(str(one) for one in value["words"]),
            str(value["moment"]),
            value["replay"],
            value["control"],
            bool(value["running"]),
            float(value["start_seconds"]),
            {str(name): str(data).encode("latin-1") for name, data in value["histories"].items()},
            tuple(os.fsdecode(str(one).encode("latin-1")) for one in value["configuration"]),
        )
        if record.places.delta != path:
            raise ValueError("it speaks of another data directory")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"read record {path}: {error}",
            hint="A delta restore did not come to its end; restore into another directory with `--target`.",
        ) from error
    return record


@dataclass(frozen=True, slots=True)
class DeltaDone:
    """``result`` is None where an earlier run had written everything. ``timeline`` is the new one."""

    result: DeltaResult | None
    timeline: int
    down_seconds: float


class DeltaInPlace:
    """Carries out a delta restore in place, or goes on with one. One thread.

    Args:
        write: writes what differs; told what to call before the directory can start, and then (``apply_delta``).
        recover: promotes and stops the restored directory, away from everything (engine/recovery/run.py).
        answers: raises ServerError when the started server is not the one that is wanted.
    """

    def __init__(
        self,
        record: Record,
        listener: Listener,
        *,
        write: Write,
        recover: Callable[[Path], None],
        answers: Callable[[], None] = lambda: None,
        manager: ServiceManager | None = None,
    ) -> None:
        self._record = record
        self._listener = listener
        self._write = write
        self._recover = recover
        self._answers = answers
        self._control = _control(record, manager)
        self._root = record.places.data_directory

    def run(self, stop: StopToken, stop_seconds: float) -> DeltaDone:
        """Raises: what ``write`` and ``recover`` raise; Busy, ServiceError, ServerDidNotStart, IntegrityError, OSError.

        Before anything was written the server runs again as it was; after that only forward.
        """
        result = None
        with alone(self._record.places, stop):
            began = time.monotonic()
            if self._record.phase is Phase.STOPPING:
                self._stop_and_save(stop, stop_seconds)
            if self._record.phase is Phase.CHANGING:
                result = self._change()
            timeline = self._start()
        return DeltaDone(result, timeline, time.monotonic() - began)

    def abandon(self) -> None:
        """Start the server again; nothing was changed. Raises: ServerError, ServiceError, OSError."""
        self._control.unmask(self._tell)
        if self._record.running and postmaster_of(self._root) is None:
            self._listener(PhaseStarted("starting the server"))
            self._control.start(self._tell, self._record.start_seconds)
        self._end()

    def complete(self) -> int:
        """What is left once the directory is a whole cluster again; returns its timeline. Raises: as ``run``."""
        return self._start()

    def _tell(self, text: str) -> None:
        self._listener(Executed(text))

    def _note(self, record: Record) -> None:
        self._tell(f"record: {record.phase}")
        record.write()
        self._record = record

    def _stop_and_save(self, stop: StopToken, stop_seconds: float) -> None:
        try:
            self._note(replace(self._record, process=this_process()))
            stop.check()
            self._listener(PhaseStarted("stopping the server"))
            self._control.stop(self._tell, stop_seconds)
            self._control.mask(self._tell)
            wait_until_stopped(self._root)
            stop.check()
            names = tuple(configuration_of(self._root))
            if not self._record.saved.is_dir():
                self._record.saved.mkdir(mode=0o700)
            copy_configuration(self._root, self._record.saved, names, None)
            sync_folder(self._record.saved.parent)
            self._note(replace(self._record, phase=Phase.CHANGING, configuration=names))
        except BaseException:
            self._abandon_quietly()
            raise

    def _change(self) -> DeltaResult:
        self._note(replace(self._record, process=this_process()))
        if (clone := postmaster_of(self._root)) is not None:  # of a run that was killed; nothing else starts here
            self._tell(f"end process {clone.pid}, a server on {self._root}")
            end_tree(clone.pid, _CLONE_SECONDS)
            wait_until_stopped(self._root)
        fresh = self._is_untouched()
        try:
            return self._write(self._keep_from_starting, self._recover_and_note)
        except BaseException:
            if fresh and self._is_untouched():
                self._abandon_quietly()
            raise

    def _recover_and_note(self, root: Path) -> None:
        try:
            self._recover(root)
        except (IntegrityError, TargetUnfit) as error:
            error.hint = ""  # what a recovery says of its new directory, that it can be deleted, is not for this one
            raise
        self._check()
        self._note(replace(self._record, phase=Phase.RECOVERED))

    def _is_untouched(self) -> bool:
        """Whether the directory is as the server left it."""
        present = all((self._root / name).exists() for name in self._record.configuration)
        return (
            present and read_unfinished(self._root) is None and not (self._root / "recovery.signal").exists()
            and control_of_directory(self._root) is not None
        )  # fmt: skip

    def _keep_from_starting(self, root: Path) -> None:
        """Until it is recovered: what the server's own configuration would do to it is not what is wanted.

        A postgresql.conf elsewhere may tell of another archive, and promotion takes recovery.signal away. But
        postgresql.auto.conf beats every other file, and no server starts without its rules of who may connect: the
        recovery's own are on its command line.
        """
        (root / _SETTINGS).unlink(missing_ok=True)
        status = root.stat()
        for name, data in ((_LOCK, self._lock().encode()), ("recovery.signal", b"")):
            write_durably(root / name, data, mode=0o600)
            if hasattr(os, "chown"):
                os.chown(root / name, status.st_uid, status.st_gid)

    def _lock(self) -> str:
        said = self._record.command.replace("\n", " ")
        return (
            f"# A restore of this directory was cut off. Go on with it: {said}\nhba_file = 'unfinished-delta-restore'\n"
        )

    def _check(self) -> None:
        """Raises: IntegrityError."""
        control = control_of_directory(self._root)
        if control is None or control.state != STOPPED or (self._root / "backup_label").exists():
            raise IntegrityError(f"restore backup: the recovery of {self._root} is not complete")
        if control.timeline in self._record.taken:
            raise IntegrityError(f"restore backup: timeline {control.timeline} exists already")

    def _start(self) -> int:
        """Raises: IntegrityError, ServerDidNotStart, ServiceError, OSError."""
        record = self._record
        control = control_of_directory(self._root)
        if control is None:
            raise IntegrityError(f"restore backup: {self._root} has no control file", hint=_AGAIN)
        if postmaster_of(self._root) is None:
            self._listener(PhaseStarted("keeping the configuration"))
            status = self._root.stat()
            owner = (status.st_uid, status.st_gid) if os.name != "nt" else None
            for name in {_SETTINGS, _LOCK, *record.configuration}:
                if (self._root / name).parent.is_dir():
                    remove_leftovers(self._root / name)  # of a run that was killed: no base backup passes over them
                if name not in record.configuration:
                    (self._root / name).unlink(missing_ok=True)
            copy_configuration(record.saved, self._root, record.configuration, owner)
            drop_unfinished(self._root)
            announce_history(self._root, control.timeline, owner)
        self._listener(PhaseStarted("starting the server"))
        self._control.unmask(self._tell)
        self._control.start(self._tell, record.start_seconds)
        self._answers()
        self._listener(Touched(f"data directory {self._root}"))
        self._end()
        return control.timeline

    def _abandon_quietly(self) -> None:
        try:
            self.abandon()
        except (DataManagerError, OSError) as error:
            self._listener(Warned(f"the server could not be started again: {error}"))

    def _end(self) -> None:
        self._record.places.delta.unlink(missing_ok=True)
        sync_folder(self._record.places.delta.parent)
        remove_tree(self._record.saved)
        remove_tree(self._record.wal)


def finish_delta(data_directory: Path, listener: Listener, *, manager: ServiceManager | None = None) -> Finished | None:
    """Bring an unfinished delta restore to its end, where that needs no repository; None when there is none.

    Raises: Busy (its process lives), TargetUnfit (the command must be run again), as ``DeltaInPlace``.
    """
    record = find_record(data_directory)
    if record is None:
        return None
    require_abandoned_by(record.process)
    require_not_halfway(record)
    with StopToken() as unstoppable, alone(record.places, unstoppable):
        delta = DeltaInPlace(record, listener, write=_never, recover=_nothing, manager=manager)
        completed = record.phase is Phase.RECOVERED
        if completed:
            delta.complete()
        else:
            delta.abandon()
    return Finished("delta restore", record.places.data_directory, completed, None)


def require_not_halfway(record: Record) -> None:
    """Raises: TargetUnfit, when only the same restore can go on."""
    if record.phase is Phase.CHANGING:
        raise TargetUnfit(
            f"restore in place: backup {record.backup} is half written over {record.places.data_directory}",
            hint=f"Run `{record.command}`: it goes on where it ended.",
        )


def require_fits(record: Record, cluster: str, words: tuple[str, ...]) -> bool:
    """Whether a command is the one that was cut off. Another may take its place where nothing whole is left.

    Raises: RestoreRefused, when that one is to be ended first.
    """
    if (record.cluster, record.words) == (cluster, words):
        return True
    if record.cluster == cluster and record.phase is Phase.CHANGING:
        return False
    raise RestoreRefused(
        f"restore in place: a delta restore of {record.backup} is not complete",
        hint=f"Run `datamanager restore complete {record.cluster}` first.",
    )


def _control(record: Record, manager: ServiceManager | None) -> ServerControl:
    try:
        return control_of(record.control, manager)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"read record {record.places.delta}: {error}") from error


def _never(before_start: Callable[[Path], None], recover: Callable[[Path], None]) -> DeltaResult:
    raise Busy("restore backup: nothing is written here")


def _nothing(root: Path) -> None:
    raise Busy(f"recover: {root} is recovered by the command alone")
