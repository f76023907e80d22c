"""The files of a run in ``STATE/runs``: how it goes, who wants it ended, what it wrote.

    ID.json     the run itself: replaced about once a second while it lives, synced at its end
    ID.cancel   who wants it ended; the run looks for it once a second
    ID.limit    it was ended by force because its time was over
    ID.output   what a run of the service wrote to its standard output and error

They go when the database has taken the run in (``jobs/intake.py``). A run needs no database and no service: whether it
still lives is told by process, start and boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from datamanager.base.files import sync_directory
from datamanager.state.model import Job, JobEvent, JobProgress, JobRequest, JobState, Trigger
from datamanager.system.processes import ProcessIdentity, is_alive

T = TypeVar("T")

_FORMAT = 1
_HINTS: dict[type[Any], dict[str, Any]] = {one: get_type_hints(one) for one in (Job, JobRequest, JobProgress)}
# A run on another computer that shares this folder, or in another container, cannot be looked at: it lives while it
# beats, and it beats once a second.
_FOREIGN_SILENT_SECONDS = 60.0
_SUFFIXES = (".json", ".cancel", ".limit", ".output")


@dataclass(frozen=True, slots=True)
class RunFile:
    """A run as its file tells it.

    Args:
        process: whoever runs it.
        effect: what it means if it fails, one sentence.
        repository, cluster: as they were named to the command; for finding what a killed run left behind.
    """

    job: Job
    process: ProcessIdentity
    events: tuple[JobEvent, ...] = ()
    effect: str = ""
    repository: str | None = None
    cluster: str | None = None

    def alive(self, now: datetime) -> bool:
        """Whether the run still goes on; False for one that wrote down its end."""
        if self.job.state.final:
            return False
        if is_alive(self.process):
            return True
        beat = self.job.heartbeat
        return (
            self.job.host != socket.gethostname()
            and beat is not None
            and abs((now - beat).total_seconds()) < _FOREIGN_SILENT_SECONDS
        )


class RunFolder:
    """The folder of runs; it may not be there yet. Thread-safe, and safe from several processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def cancel_path(self, id: str) -> Path:
        return self.folder / f"{id}.cancel"

    def limit_path(self, id: str) -> Path:
        return self.folder / f"{id}.limit"

    def output_path(self, id: str) -> Path:
        return self.folder / f"{id}.output"

    def make(self) -> None:
        """Make the folder, private to the account that owns the one above it. Raises: OSError."""
        make_folder(self.folder)

    def ids(self) -> list[str]:
        """Ids of the runs that have a file, oldest first."""
        with contextlib.suppress(OSError):
            names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".json")]
            return sorted(name.removesuffix(".json") for name in names if not name.startswith("."))
        return []

    def read(self, id: str) -> RunFile | None:
        """A run; None when it has no file (any more). Raises: OSError; ValueError, when it cannot be understood."""
        try:
            return decoded(self.path(id).read_bytes())
        except FileNotFoundError:
            return None

    def runs(self) -> Iterator[RunFile]:
        """Every run that can be read."""
        for id in self.ids():
            with contextlib.suppress(OSError, ValueError):
                run = self.read(id)
                if run is not None:
                    yield run

    def write(self, run: RunFile, *, durable: bool) -> None:
        """Replace the run's file. Raises: OSError, with the old one in place.

        A durable one is synced, and is written over the old one where the volume has no room for a second.
        """
        path, data = self.path(run.job.id), encoded(run)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write(temporary, data, durable=durable)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if not durable:
                raise
            _write_over(path, data)
            return
        if durable:
            sync_directory(self.folder)

    def ask_to_cancel(self, id: str, who: str) -> None:
        """Let the run end itself; the first to ask is named. Raises: OSError."""
        with contextlib.suppress(FileExistsError), os.fdopen(new_file(self.cancel_path(id)), "wb") as file:
            file.write(who.encode("utf-8", "backslashreplace"))

    def note_limit(self, id: str) -> None:
        """Note that the run is ended by force because its time is over. Raises: OSError."""
        with contextlib.suppress(FileExistsError):
            os.close(new_file(self.limit_path(id)))

    def open_output(self, id: str) -> int:
        """A descriptor for what a run of the service writes, from its beginning. Raises: OSError."""
        return replacing_file(self.output_path(id))

    def who_cancelled(self, id: str) -> str | None:
        """Who wants the run ended; None when nobody does."""
        try:
            return self.cancel_path(id).read_text(encoding="utf-8").strip() or "someone"
        except (OSError, ValueError):
            return None

    def drop(self, id: str) -> None:
        """Remove everything of a run. Raises: OSError."""
        for suffix in _SUFFIXES:
            (self.folder / f"{id}{suffix}").unlink(missing_ok=True)

    def sweep(self, older_than_seconds: float) -> None:
        """Remove what belongs to no run and is older than that."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.folder)):
                whose = entry.name.rpartition(".")[0]
                if entry.name.endswith((*_SUFFIXES[1:], ".tmp")) and not self.path(whose).exists():
                    with contextlib.suppress(OSError):
                        age = datetime.now(UTC).timestamp() - entry.stat().st_mtime
                        if age > older_than_seconds:
                            os.unlink(entry.path)  # noqa: PTH108 - an entry of scandir


def make_folder(folder: Path) -> None:
    """Make a folder, private to the account that owns the one above it. Raises: OSError."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _own_like(folder.parent, descriptor)
            finally:
                os.close(descriptor)


def new_file(path: Path) -> int:
    """Make a file, readable for the account that owns its folder alone; returns its descriptor, open for writing.

    Root may be led astray in the folder of another account: no link is followed, and no name is given away that may
    mean another file by then. Raises: OSError; FileExistsError, also for a link.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with contextlib.suppress(OSError):
        _own_like(path.parent, descriptor)
    return descriptor


def replacing_file(path: Path) -> int:
    """The same in place of what has that name. Raises: OSError."""
    path.unlink(missing_ok=True)
    return new_file(path)


def _own_like(folder: Path, descriptor: int) -> None:
    """Give what root made in another account's folder to that account. Raises: OSError."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return
    owner = folder.stat()
    if owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    with os.fdopen(replacing_file(path), "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _write_over(path: Path, data: bytes) -> None:
    """On a full volume: the blocks that the file has already are its last chance to tell the truth."""
    with os.fdopen(os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)), "wb") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def encoded(run: RunFile) -> bytes:
    """The run as JSON, in ASCII."""
    values = {
        "format": _FORMAT,
        "process": asdict(run.process),
        "job": asdict(run.job),
        "events": [asdict(one) for one in run.events],
        "effect": run.effect,
        "repository": run.repository,
        "cluster": run.cluster,
    }
    return (json.dumps(values, default=_plain) + "\n").encode("ascii")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def decoded(data: bytes) -> RunFile:
    """Raises: ValueError, when it cannot be understood."""
    try:
        values = json.loads(data)
        if values["format"] != _FORMAT:
            raise ValueError("a newer program wrote it")
        process = values["process"]
        return RunFile(
            _job(values["job"]),
            ProcessIdentity(int(process["pid"]), float(process["started"]), str(process["boot"])),
            tuple(JobEvent(_moment(one["time"]), str(one["kind"]), str(one["text"])) for one in values["events"]),
            str(values["effect"]),
            values["repository"],
            values["cluster"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the file of a run: {error}") from error


def _job(values: Mapping[str, Any]) -> Job:
    known = _known(Job, values)
    known["request"] = request_of(values["request"])
    known["state"] = JobState(values["state"])
    known["progress"] = _checked(JobProgress(**_known(JobProgress, values["progress"])))
    known["warnings"] = tuple(values["warnings"])
    for name in ("queued", "started", "ended", "heartbeat"):
        known[name] = _moment_or_none(values[name])
    return _checked(Job(**known))


def request_of(values: Mapping[str, Any]) -> JobRequest:
    """A request from its JSON. Raises: KeyError, TypeError, ValueError."""
    known = _known(JobRequest, values)
    known["arguments"] = tuple(str(one) for one in values["arguments"])
    known["trigger"] = Trigger(values["trigger"])
    known["due"] = _moment_or_none(values.get("due"))
    return _checked(JobRequest(**known))


def _checked(value: T) -> T:
    """The same, when each field is of its kind: the database would refuse any other for ever. Raises: TypeError."""
    for name, hint in _HINTS[type(value)].items():
        if not _fits(getattr(value, name), hint):
            raise TypeError(f"{name} is of another kind")
    return value


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    kind = get_origin(hint) or hint
    return isinstance(value, (int, float) if kind is float else kind)


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What this release knows of a record that another one may have written."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _moment_or_none(text: str | None) -> datetime | None:
    return None if text is None else _moment(text)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
