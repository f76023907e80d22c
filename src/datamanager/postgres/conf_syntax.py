"""Reading configuration files as far as finding what they include: postgresql.conf, pg_hba.conf and pg_ident.conf.

Text is Latin-1, one character a byte, so that every file can be read; names of files are given back as the system has
them. Source: PostgreSQL src/backend/utils/misc/guc-file.l; src/backend/libpq/hba.c (next_token).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_SETTING = re.compile(r"[ \t]*([A-Za-z_][\w.$]*)[ \t]*=?[ \t]*('(?:[^'\\\n]|\\.|'')*'|[^\s#']+)?")
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)|''")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_INCLUDES = frozenset(("include", "include_if_exists", "include_dir"))
_TOKEN = re.compile(r'#.*|@"[^"]*"|"[^"]*"|[^\s,"#]+')


class IncludeKind(StrEnum):
    """How a file is included; the values are the words in the file."""

    FILE = "include"
    IF_EXISTS = "include_if_exists"
    FOLDER = "include_dir"


@dataclass(frozen=True, slots=True)
class Include:
    """``name`` as it stands there, relative to the file's folder unless absolute."""

    kind: IncludeKind
    name: str


def settings_of(data: bytes) -> Iterator[tuple[str, str] | Include]:
    """Every assignment of a postgresql.conf (name in lower case) and every include, in order."""
    for line in data.decode("latin-1").splitlines():
        match = _SETTING.match(line)
        if match is None or match[2] is None:
            continue
        name, value = match[1].lower(), _as_name(_unquoted(match[2]))
        if name in _INCLUDES:
            yield Include(IncludeKind(name), value)
        else:
            yield name, value


def hba_includes(data: bytes) -> Iterator[Include]:
    """What a pg_hba.conf or pg_ident.conf includes: directives (16 and later), and lists of names by ``@file``."""
    for line in data.decode("latin-1").splitlines():
        tokens = [token for token in _TOKEN.findall(line) if not token.startswith("#")]
        if len(tokens) == 2 and tokens[0] in _INCLUDES:
            yield Include(IncludeKind(tokens[0]), _as_name(tokens[1].strip('"')))
            continue
        for token in tokens:
            if token.startswith("@") and len(token) > 1:
                yield Include(IncludeKind.FILE, _as_name(token[1:].strip('"')))


def _unquoted(value: str) -> str:
    return _ESCAPE.sub(_meant, value[1:-1]) if value.startswith("'") else value


def _meant(match: re.Match[str]) -> str:
    escaped = match[1]
    if escaped is None:
        return "'"
    return chr(int(escaped, 8) & 0xFF) if escaped[0] in "01234567" else _ESCAPED.get(escaped, escaped)


def _as_name(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")
