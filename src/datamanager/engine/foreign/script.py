"""Reading the scripts of pg_dump and pg_dumpall: what they need, whether they are whole, and as psql may be given them.

psql has no way to know that a script was cut off: it takes the end of the file for the end of a COPY and commits. So a
script is read to its end first, where pg_dump says that it is complete. Between, three kinds of lines are told apart:
statements, what stands within a literal or comment that began before, and rows of COPY. Only the first are understood.

A script may hold backslash commands, with which psql runs programs. So psql is put under ``\\restrict`` with a key of
our own; pg_dump's own such lines go out, and its ``\\connect`` is let through only for a script of all databases.
Source: CVE-2025-8714; PostgreSQL documentation, psql \\restrict; src/bin/pg_dump.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from datamanager.base.errors import TargetUnfit, UsageError
from datamanager.engine.foreign.statements import (
    database_attributes,
    is_about_owners,
    roles_named,
    tablespace_location,
    unquoted,
    with_location,
)
from datamanager.engine.foreign.streams import Readable, cut_off

DATABASE_HEADER, CLUSTER_HEADER = b"-- PostgreSQL database dump", b"-- PostgreSQL database cluster dump"
_COMPLETE = {DATABASE_HEADER + b" complete": False, CLUSTER_HEADER + b" complete": True}
_READ_BYTES = 1 << 20
_OBJECT = re.compile(rb"-- (Data for )?Name: (.+); Type: ([A-Z ]+); Schema: ")
_VERSION = re.compile(rb"-- Dumped (from database|by pg_dump) version (\S+)")
_KEY = re.compile(rb"\\(?:un)?restrict ([A-Za-z0-9]+)\Z")
_CONNECT = re.compile(
    rb"\\connect ((?:-reuse-previous=on )?\"(?:dbname='(?:[^'\"\\]|\\.)+'|[^\"=\\]+)\"|[^\s\"'=\\]+)\Z"
)
_QUOTE = re.compile(rb"[eE]'|'|\"|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$|--|/\*")
_ENDS = {b"'": re.compile(rb"'"), b"e": re.compile(rb"\\.|'", re.DOTALL), b'"': re.compile(rb'"')}
_ABOUT_DATABASE = ("DATABASE", "DATABASE PROPERTIES")
_ABOUT_OBJECT = ("ACL", "COMMENT", "SECURITY LABEL")


class Place(Enum):
    """Where a piece of a script stands."""

    STATEMENT = 1
    WITHIN = 2  # a literal or a comment that began on a line before
    ROWS = 3


@dataclass
class Survey:
    """What a script needs. ``objects`` counts what it makes; sizes are bytes."""

    cluster: bool = False
    complete: bool = False
    size: int = 0
    objects: int = 0
    server_version: str = ""
    dump_version: str = ""
    attributes: str = ""
    database: str = ""
    roles: set[str] = field(default_factory=set)
    superusers: list[str] = field(default_factory=list)
    tablespaces: set[str] = field(default_factory=set)
    locations: dict[str, str] = field(default_factory=dict)
    databases: list[str] = field(default_factory=list)


def survey_script(file: Readable, path: Path) -> Survey:
    """Read a script to its end.

    Raises: IntegrityError (cut off), UsageError (it drops what is there, or connects elsewhere); what reading raises.
    """
    found = Survey()
    lines = Lines(file)
    first = True
    for line, place in lines:
        found.size += len(line)
        if place is not Place.STATEMENT:
            continue
        text = line.rstrip()
        if not text or text == b"--":
            continue
        if first and text.startswith(b"-- "):
            found.cluster, first = text == CLUSTER_HEADER, False
        if text in _COMPLETE:
            found.complete = _COMPLETE[text] == found.cluster
        elif text.startswith(b"--"):
            _survey_comment(found, text)
        elif not text.startswith(b"\\unrestrict "):
            found.complete = False
            _survey_statement(found, text, path)
    if not found.complete:
        raise cut_off(path, "its last lines, with which pg_dump says that it is complete, are missing")
    return found


def _survey_comment(found: Survey, text: bytes) -> None:
    version = _VERSION.match(text)
    if version is not None:
        value = version[2].decode("ascii", "replace")
        if version[1] == b"by pg_dump":
            found.dump_version = value
        else:
            found.server_version = value
    found.objects += _OBJECT.match(text) is not None


def _survey_statement(found: Survey, text: bytes, path: Path) -> None:
    if text[:1] not in b"AGRCSD\\":
        return
    line = text.decode("utf-8", "surrogateescape")
    if text.startswith(b"\\connect "):
        if _CONNECT.match(text) is None:
            raise UsageError(
                f"read {path}: it connects to another server: {line[:80]}",
                hint="Look at the script; pg_dump and pg_dumpall write no such line.",
            )
    elif text.startswith(b"SET default_tablespace = "):
        name = unquoted(line.partition("= ")[2].rstrip(";"))
        found.tablespaces |= {unquoted(name)} if name else set()
    elif text.startswith(b"CREATE DATABASE "):
        found.attributes = database_attributes(line)
        found.databases.append(unquoted(line.split(" WITH ")[0].removeprefix("CREATE DATABASE ").rstrip(";")))
    elif text.startswith(b"CREATE TABLESPACE "):
        known = tablespace_location(line)
        if known is not None:
            found.locations[known[0]] = known[1]
    elif found.cluster and text.startswith((b"DROP DATABASE ", b"DROP ROLE ", b"DROP TABLESPACE ")):
        raise UsageError(
            f"read {path}: the script was made with --clean: it drops databases or roles before it makes them",
            hint="Make the dump without --clean; this program never drops what is there.",
        )
    elif found.cluster and (role := re.match(r"ALTER ROLE (.+?) WITH SUPERUSER ", line)):
        found.superusers.append(unquoted(role[1]))
    else:
        found.roles.update(roles_named(line))


class Lines:
    """The pieces of a script in order: statements and literals line by line, rows of COPY in large blocks.

    ``about_database`` and ``about_object`` tell of the object that pg_dump's last comment named.
    """

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._open: bytes = b""  # the quotation mark, dollar tag or comment that is open
        self._table_data = False
        self.about_database = False
        self.about_object = ""
        self.line = 0

    def __iter__(self) -> Iterator[tuple[bytes, Place]]:
        buffer, position, rows = b"", 0, False
        while block := self._file.read(_READ_BYTES):
            buffer, position = buffer[position:] + block, 0
            while position < len(buffer):
                if rows:
                    end = _end_of_rows(buffer, position)
                    rows, end = not end, end or buffer.rfind(b"\n", position) + 1
                    if end <= position:
                        break
                    yield self._counted(buffer[position:end]), Place.ROWS
                else:
                    end = buffer.find(b"\n", position) + 1
                    if not end:
                        break
                    line = buffer[position:end]
                    place = self._placed(line)
                    rows = place is Place.STATEMENT and self._begins_rows(line)
                    yield self._counted(line), place
                position = end
        if rest := buffer[position:]:
            yield self._counted(rest), Place.ROWS if rows else self._placed(rest)

    def _begins_rows(self, line: bytes) -> bool:
        return self._table_data and line.startswith(b"COPY ") and line.rstrip().endswith(b" FROM stdin;")

    def _counted(self, piece: bytes) -> bytes:
        self.line += piece.count(b"\n")
        return piece

    def _placed(self, line: bytes) -> Place:
        place = Place.WITHIN if self._open else Place.STATEMENT
        if place is Place.STATEMENT and line.startswith(b"--"):
            self._note(line)
            return place
        self._follow(line)
        return place

    def _note(self, line: bytes) -> None:
        found = _OBJECT.match(line)
        if found is None:
            return
        kind, name = found[3].decode(), found[2].decode("utf-8", "replace")
        self._table_data = kind == "TABLE DATA"
        self.about_object = f"{kind} {name}"
        self.about_database = kind in _ABOUT_DATABASE or (kind in _ABOUT_OBJECT and name.startswith("DATABASE "))

    def _follow(self, line: bytes) -> None:
        """Find out whether a literal or comment is open at the end of the line."""
        position = 0
        while position < len(line):
            if self._open:
                position = self._close(line, position)
                continue
            found = _QUOTE.search(line, position)
            if found is None or found[0] == b"--":
                return
            mark = found[0]
            self._open = b"e" if mark in (b"e'", b"E'") and _begins_word(line, found.start()) else mark.lstrip(b"eE")
            position = found.end()

    def _close(self, line: bytes, position: int) -> int:
        """Where what is open ends, or the end of the line."""
        pattern = _ENDS.get(self._open)
        if pattern is None:
            mark = b"*/" if self._open == b"/*" else self._open
            found = line.find(mark, position)
            if found < 0:
                return len(line)
            self._open = b""
            return found + len(mark)
        while (match := pattern.search(line, position)) is not None:
            position = match.end()
            if match[0] in (b"'", b'"'):
                self._open = b""
                return position
        return len(line)


def _begins_word(line: bytes, position: int) -> bool:
    return position == 0 or not (line[position - 1 : position].isalnum() or line[position - 1 : position] == b"_")


def _end_of_rows(data: bytes, start: int) -> int:
    """Where the line ``\\.`` ends that ends the rows beginning at ``start``; 0 when it is not in sight."""
    position = start
    while position >= start:
        for end in (b"\\.\n", b"\\.\r\n"):
            if data.startswith(end, position):
                return position + len(end)
        position = data.find(b"\n\\.", position) + 1 or -1
    return 0


class Feed:
    """A script as psql gets it. ``object_at`` tells what psql worked on at one of its line numbers.

    Args:
        drop_owners: leave out whose things are and who may use them.
        missing: tablespaces that the server lacks; their tables go into the database's own.
        locations: for a script of all databases, where each tablespace goes.
        bootstrap: for the same, the role that is there already.
    """

    def __init__(
        self,
        file: Readable,
        survey: Survey,
        *,
        drop_owners: bool = False,
        missing: frozenset[str] = frozenset(),
        locations: Mapping[str, Path] | None = None,
        bootstrap: str = "",
        fed: Callable[[int], None] | None = None,
    ) -> None:
        self._lines = Lines(file)
        self._survey = survey
        self._drop_owners = drop_owners
        self._missing = missing
        self._locations = locations or {}
        self._bootstrap = bootstrap
        self._fed = fed
        self._key = secrets.token_hex(16).encode()
        self._objects: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[bytes]:
        yield b"\\restrict %b\n" % self._key
        written, seen = 1, ""
        for line, place in self._lines:
            if self._lines.about_object != seen:
                seen = self._lines.about_object
                self._objects.append((written, seen))
            given = self._given(line) if place is Place.STATEMENT else line
            written += given.count(b"\n")
            if self._fed is not None:
                self._fed(len(line))
            yield given
        yield b"\\unrestrict %b\n" % self._key

    def object_at(self, line: int) -> str:
        """``TABLE clinic.visits``; empty before the first one."""
        return next((name for since, name in reversed(self._objects) if since < line), "")

    def _given(self, line: bytes) -> bytes:
        text = line.rstrip()
        if text.startswith(b"\\"):
            return self._command(line, text)
        if text.startswith(b"--") or not text:
            return line
        if self._survey.cluster:
            return self._of_cluster(line, text)
        if self._lines.about_database or self._drops(text):
            return b"\n"
        if self._drop_owners and is_about_owners(text.decode("utf-8", "surrogateescape")):
            return b"\n"
        if text.startswith(b"SET default_tablespace = "):
            name = unquoted(unquoted(text.decode("utf-8", "surrogateescape").partition("= ")[2].rstrip(";")))
            return b"\n" if name in self._missing else line
        return line

    def _drops(self, text: bytes) -> bool:
        """What --clean put before everything else; the new database has nothing to drop, and another is not ours."""
        if text.startswith(b"DROP DATABASE "):
            return True
        early = not self._lines.about_object
        return early and (text.startswith(b"DROP ") or (text.startswith(b"ALTER ") and b" DROP " in text))

    def _command(self, line: bytes, text: bytes) -> bytes:
        if _KEY.match(text):
            return b"\n"
        if _CONNECT.match(text):
            if not self._survey.cluster:
                return b"\n"
            return b"\\unrestrict %b\n%b\n\\restrict %b\n" % (self._key, text, self._key)
        return line  # psql refuses it

    def _of_cluster(self, line: bytes, text: bytes) -> bytes:
        statement = text.decode("utf-8", "surrogateescape")
        if statement.startswith("CREATE ROLE ") and unquoted(statement[12:].rstrip(";")) == self._bootstrap:
            return b"\n"
        place = tablespace_location(statement) if statement.startswith("CREATE TABLESPACE ") else None
        if place is None:
            return line
        if place[0] not in self._locations:
            raise TargetUnfit(f"restore tablespace {place[0]}: it has no place in the plan")
        moved = with_location(statement, str(self._locations[place[0]]))
        return moved.encode("utf-8", "surrogateescape") + b"\n"
