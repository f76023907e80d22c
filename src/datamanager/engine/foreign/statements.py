"""What single statements of a dump name: roles, databases, tablespaces. All of them stand on one line in pg_dump's way.

Source: PostgreSQL src/bin/pg_dump/dumputils.c (buildACLCommands), pg_dump.c, pg_dumpall.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = r'(?:"(?:[^"]|"")+"|[^\s",;()]+)'
_NAMES = rf"{_NAME}(?:, {_NAME})*"
_ROLES = tuple(
    re.compile(text)
    for text in (
        rf"ALTER .+ OWNER TO ({_NAME});\Z",
        rf"(?:GRANT|ALTER DEFAULT PRIVILEGES) .+ TO (?:GROUP )?({_NAMES})(?: WITH GRANT OPTION)?"
        rf"(?: GRANTED BY {_NAME})?;\Z",
        rf"(?:REVOKE|ALTER DEFAULT PRIVILEGES) .+ FROM (?:GROUP )?({_NAMES})(?: CASCADE)?;\Z",
        rf"ALTER DEFAULT PRIVILEGES FOR ROLE ({_NAME}) ",
        rf"SET SESSION AUTHORIZATION ({_NAME}|'[^']+');\Z",
        rf"CREATE POLICY .+? TO ({_NAMES})(?: USING| WITH CHECK|;)",
        rf"CREATE USER MAPPING FOR ({_NAME}) SERVER ",
    )
)
_EACH = re.compile(_NAME)
_NOBODY = ("PUBLIC", "public", "DEFAULT", "CURRENT_USER", "SESSION_USER", "CURRENT_ROLE", "'DEFAULT'")
_ATTRIBUTES = re.compile(r"\s*CREATE DATABASE .+? WITH (.+?);", re.DOTALL)
_TABLESPACE = re.compile(rf"\s*TABLESPACE = ({_NAME})")
_LOCATION = re.compile(rf"CREATE TABLESPACE ({_NAME})( OWNER {_NAME})? LOCATION '((?:[^']|'')*)'(.*)", re.DOTALL)


def unquoted(name: str) -> str:
    """A name as SQL writes it, as it is."""
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        return name[1:-1].replace(name[0] * 2, name[0])
    return name


def quoted(name: str) -> str:
    """A name as SQL may read it anywhere."""
    return '"' + name.replace('"', '""') + '"'


def roles_named(statement: str) -> Iterator[str]:
    """The roles whose existence a statement needs."""
    for line in statement.splitlines():
        for pattern in _ROLES:
            found = pattern.match(line)
            for name in _EACH.findall(found[1]) if found else ():
                if name not in _NOBODY:
                    yield unquoted(name)


def is_about_owners(line: str) -> bool:
    """Whether a statement only says whose something is, or who may use it."""
    return line.startswith(("GRANT ", "REVOKE ", "ALTER DEFAULT PRIVILEGES ", "SET SESSION AUTHORIZATION ")) or bool(
        _ROLES[0].match(line)
    )


def database_attributes(statement: str) -> str:
    """What stands after WITH in a CREATE DATABASE, but for its tablespace and oid; empty for another statement."""
    found = _ATTRIBUTES.match(statement)
    return "" if found is None else re.sub(r"\s*OID = \d+", "", _TABLESPACE.sub("", found[1])).strip()


def tablespace_location(statement: str) -> tuple[str, str] | None:
    """Name and location in a CREATE TABLESPACE; None for another statement."""
    found = _LOCATION.match(statement)
    return None if found is None else (unquoted(found[1]), found[3].replace("''", "'"))


def with_location(statement: str, location: str) -> str:
    """The same CREATE TABLESPACE at another place."""
    found = _LOCATION.match(statement)
    if found is None:
        return statement
    return f"CREATE TABLESPACE {found[1]}{found[2] or ''} LOCATION '{location.replace(chr(39), chr(39) * 2)}'{found[4]}"
