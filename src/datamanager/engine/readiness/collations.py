"""Whether text sorts here as it did there: indexes on text are in the order of the library that built them.

glibc's version is the system's, and the server records it (15 and newer for databases). ICU's is asked of the very
library that the server's program is linked with. Elsewhere (macOS, Windows, musl) it is not known.
Source: PostgreSQL src/backend/utils/adt/pg_locale.c, get_collation_actual_version; ICU ucol_getVersion.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from datamanager.engine.readiness.finding import Finding, fine, unknown, warning
from datamanager.postgres.facts_model import DatabaseFact, ServerFacts
from datamanager.postgres.programs import Programs

_PLAIN = re.compile(r"(?:C|POSIX)(?:\.|\Z)", re.IGNORECASE)  # no version: the order of bytes, or of code points
_ICU = re.compile(rb"libicui18n\.so\.(\d+)")
_PREDEFINED = re.compile(r'^pg_catalog\."?([^"]+)-x-icu"?$')
_REMEDY = (
    "After the restore, before it is used, run `REINDEX DATABASE` there, then `ALTER DATABASE … REFRESH COLLATION"
    " VERSION`."
)

Versions = Callable[[str, str], str | None]  # of a provider and a locale on this machine


def check_collations(facts: ServerFacts, versions: Versions) -> list[Finding]:
    """Code ``collation``. Args: versions - what this machine's libraries call themselves, None where unknown."""
    differ: list[str] = []
    untold: list[str] = []
    for database in facts.databases:
        for what, provider, locale, recorded in _used(database):
            here = None if recorded is None else versions(provider, locale)
            if here is None:
                untold.append(what)
            elif here != recorded:
                differ.append(f"{what} ({provider} {recorded}, here {here})")
        if database.allows_connections and not database.looked_into:
            untold.append(f"collations in {database.name}")
    if differ:
        return [warning("collation", f"Text sorts differently here for {_some(differ)}.", _REMEDY)]
    if untold or not facts.databases:
        names = _some(untold) if untold else "all databases, as the backup does not describe them"
        return [
            unknown(
                "collation",
                f"Whether text sorts here as on the original is not known for {names}.",
                "Restore on the same release of the operating system, or run `REINDEX DATABASE` afterwards.",
            )
        ]
    return [fine("collation", "Text sorts here as it did where the backup was made.")]


def local_versions(programs: Programs | None) -> Versions:
    """What this machine's C library and the ICU of these programs call themselves."""

    def version(provider: str, locale: str) -> str | None:
        if provider == "libc":
            return _libc_version()
        return _icu_version(programs, locale) if provider == "icu" and programs is not None else None

    return version


def _used(database: DatabaseFact) -> Iterator[tuple[str, str, str, str | None]]:
    """What sorts in a database: its name, provider, locale and recorded version."""
    provider, locale = database.locale_provider, database.locale or database.collate
    if provider != "builtin" and not (provider == "libc" and _PLAIN.match(database.collate)):
        yield f"database {database.name}", provider, locale, database.collation_version
    for one in database.collations:
        if one.provider not in ("builtin", "default"):
            predefined = _PREDEFINED.match(one.name)
            known = one.provider == "libc" or predefined is not None
            locale = predefined[1] if predefined else ""
            yield f"collation {one.name} in {database.name}", one.provider, locale, one.version if known else None


def _libc_version() -> str | None:
    if sys.platform != "linux":
        return None
    with contextlib.suppress(ValueError, OSError):
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return version if name == "glibc" else None
    return platform.libc_ver()[1] or None


def _icu_version(programs: Programs, locale: str) -> str | None:
    library, release = _icu_library(programs)
    if library is None:
        return None
    try:
        begin, tell, end = (getattr(library, f"ucol_{name}_{release}") for name in ("open", "getVersion", "close"))
    except AttributeError:
        return None
    begin.restype = ctypes.c_void_p
    begin.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]
    tell.argtypes = [ctypes.c_void_p, ctypes.c_char * 4]
    tell.restype = None
    end.argtypes = [ctypes.c_void_p]
    end.restype = None
    failure = ctypes.c_int(0)
    collator = begin(locale.encode(), ctypes.byref(failure))
    if not collator or failure.value > 0:
        return None
    numbers = (ctypes.c_char * 4)()
    tell(collator, numbers)
    end(collator)
    fields = list(numbers.raw)
    while len(fields) > 2 and fields[-1] == 0:  # as u_versionToString
        fields.pop()
    return ".".join(map(str, fields))


def _icu_library(programs: Programs) -> tuple[ctypes.CDLL | None, str]:
    """The library that the server's program asks for, and its release."""
    if sys.platform != "linux":
        return None, ""
    try:
        found = _ICU.search(programs.path("postgres").read_bytes())
    except OSError:
        return None, ""
    if found is None:
        return None, ""
    name = found[0].decode()
    for place in (programs.bin_directory.parent / "lib" / name, Path(name)):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(place)), found[1].decode()
    return None, ""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
