"""Recognising what a person has as a backup, by its content and never by its name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from datamanager.base.errors import IntegrityError, NotFound, RightMissing, UsageError
from datamanager.base.pipeline import StopToken
from datamanager.engine.foreign import toc
from datamanager.engine.foreign.script import CLUSTER_HEADER, DATABASE_HEADER, Survey, survey_script
from datamanager.engine.foreign.strange import describe_strange
from datamanager.engine.foreign.streams import compression_of, opened_plain
from datamanager.engine.foreign.tar import BLOCK, TarReader
from datamanager.repository.format import CONFIG

_HEAD_BYTES = 4096
_TOC = "toc.dat"
# A directory that has these is a repository of this program.
_REPOSITORY = (CONFIG, "packs", "manifests", "ring")


class Kind(Enum):
    """What a foreign file is, in words."""

    ARCHIVE = "pg_dump archive"
    SCRIPT = "pg_dump script"
    CLUSTER_SCRIPT = "pg_dumpall script"
    BASE_DIRECTORY = "base backup"
    BASE_TAR = "base backup in tar files"


@dataclass(frozen=True)
class ForeignFile:
    """A file or directory that can be restored.

    Args:
        version: of the server it was made from, such as ``15.19`` or ``17``; empty where it does not say.
        size: bytes of the file, or of all files of the directory.
        compression: empty for none.
        databases: their names, as far as it tells them.
        contents: an archive's table of contents.
        survey: what was found by reading a script to its end.
    """

    path: Path
    kind: Kind
    version: str
    size: int
    compression: str = ""
    databases: tuple[str, ...] = ()
    contents: toc.Contents | None = None
    survey: Survey | None = None


def recognise(path: Path, stop: StopToken) -> ForeignFile:
    """Say what a file or directory is; a script is read to its end.

    Raises: NotFound, RightMissing; UsageError, for what is no backup of PostgreSQL, saying what it looks like;
        IntegrityError, for one that was cut off; FormatUnsupported; Cancelled.
    """
    try:
        if path.is_dir():
            return _directory(path, stop)
        return _file(path, stop)
    except FileNotFoundError as error:
        raise NotFound(f"read {path}: there is no such file", hint="Check the path.") from error
    except PermissionError as error:
        raise RightMissing(
            f"read {error.filename or path}: this account may not read it",
            hint="Run the command as its owner, or as root.",
        ) from error


def _file(path: Path, stop: StopToken) -> ForeignFile:
    with path.open("rb") as file:
        compression = compression_of(file.read(8))
    size = path.stat().st_size
    with opened_plain(path, stop) as plain:
        head = plain.read(_HEAD_BYTES)
    if head.startswith(toc.MAGIC):
        return _archive(path, size, compression, stop)
    if is_tar(head):
        return _tar(path, size, compression, stop)
    if is_script(head):
        with opened_plain(path, stop) as plain:
            survey = survey_script(plain, path)
        kind = Kind.CLUSTER_SCRIPT if survey.cluster else Kind.SCRIPT
        version = survey.server_version
        return ForeignFile(path, kind, version, size, compression, tuple(survey.databases), survey=survey)
    what, hint = describe_strange(head)
    packed = f", packed by {compression}" if compression else ""
    raise UsageError(f"read {path}: it looks like {what}{packed}, and is no backup of PostgreSQL", hint=hint)


def _archive(path: Path, size: int, compression: str, stop: StopToken) -> ForeignFile:
    if compression:
        raise UsageError(
            f"read {path}: a pg_dump archive packed once more by {compression}",
            hint="Unpack it and give the file within: pg_restore reads none from a compressed file.",
        )
    with opened_plain(path, stop) as plain:
        contents = toc.read_contents(plain, path)
    return ForeignFile(path, Kind.ARCHIVE, contents.server_version, size, databases=_named(contents), contents=contents)


def _tar(path: Path, size: int, compression: str, stop: StopToken) -> ForeignFile:
    """A dump in tar format begins with its table of contents."""
    with opened_plain(path, stop) as plain:
        reader = TarReader(plain, path)
        first = next(reader.members(), None)
        if first is None:
            raise UsageError(f"read {path}: an empty tar archive", hint="Look at how it was made.")
        if first.path == _TOC:
            contents = toc.read_contents(reader, path)
            if compression:
                raise UsageError(
                    f"read {path}: a pg_dump archive packed by {compression}", hint="Unpack it and give the tar file."
                )
            return ForeignFile(
                path, Kind.ARCHIVE, contents.server_version, size, databases=_named(contents), contents=contents
            )
    return ForeignFile(path, Kind.BASE_TAR, "", size, compression)


def _directory(path: Path, stop: StopToken) -> ForeignFile:
    if all((path / name).exists() for name in _REPOSITORY):
        raise UsageError(
            f"read {path}: a repository of this program",
            hint=f"Restore from it with `datamanager restore latest --repo {path}`.",
        )
    files = [one for one in path.iterdir() if one.is_file()]
    size = sum(one.stat().st_size for one in files)
    if (path / _TOC).is_file():
        with opened_plain(path / _TOC, stop) as plain:
            # Its own header calls a directory's table one of a tar archive.
            contents = replace(toc.read_contents(plain, path / _TOC), form="directory")
        return ForeignFile(
            path, Kind.ARCHIVE, contents.server_version, size, databases=_named(contents), contents=contents
        )
    if (path / "PG_VERSION").is_file():
        version = (path / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        return ForeignFile(path, Kind.BASE_DIRECTORY, version, size)
    if tar_files(path, stop):
        return ForeignFile(path, Kind.BASE_TAR, "", size)
    if any(path.glob("[0-9]*.dat*")):
        raise IntegrityError(
            f"read {path}: a directory of pg_dump without its table of contents (toc.dat)",
            hint="Copy the whole directory again; without that file nothing of it can be restored.",
        )
    what = "an empty directory" if not any(path.iterdir()) else "a directory that holds no backup of PostgreSQL"
    raise UsageError(f"read {path}: {what}", hint="Give the file or directory that the backup consists of.")


def tar_files(folder: Path, stop: StopToken) -> list[Path]:
    """The tar archives in a directory, compressed or not. Raises: IntegrityError (cut off), Cancelled."""
    found = []
    for one in sorted(folder.iterdir()):
        if not one.is_file() or not one.stat().st_size:
            continue
        with one.open("rb") as file:
            head = file.read(BLOCK)
        if compression_of(head):
            with opened_plain(one, stop) as plain:
                head = plain.read(BLOCK)
        if is_tar(head):
            found.append(one)
    return found


def is_tar(head: bytes) -> bool:
    """Whether these first bytes are a tar archive's header."""
    return len(head) >= BLOCK and head[257:262] == b"ustar"


def is_script(head: bytes) -> bool:
    """Whether these first bytes are a script's of pg_dump or pg_dumpall."""
    lines = [line.strip() for line in head[:400].splitlines()]
    written = [line for line in lines if line and line != b"--"]
    return bool(written) and written[0] in (DATABASE_HEADER, CLUSTER_HEADER)


def _named(contents: toc.Contents) -> tuple[str, ...]:
    return (contents.database,) if contents.database else ()
