"""Whether the C library here knows the locales of the databases: without one nobody can connect to its database.

Source: PostgreSQL src/backend/utils/init/postinit.c, CheckMyDatabase; newlocale(3).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from datamanager.base.errors import ServerMismatch
from datamanager.engine.readiness.finding import Finding, blocking, fine
from datamanager.postgres.facts_model import ServerFacts

_CTYPE_AND_COLLATE = 1 << 0 | 1 << 3  # LC_CTYPE_MASK and LC_COLLATE_MASK of glibc


def check_locales(facts: ServerFacts, known: Callable[[str], bool | None]) -> list[Finding]:
    """Code ``locale``; nothing where it cannot be asked. Args: known - whether a locale is here, None where unknown."""
    names: dict[str, list[str]] = {}
    for database in facts.databases:
        for name in {database.collate, database.ctype} - {""}:
            names.setdefault(name, []).append(database.name)
    answers = {name: known(name) for name in names}
    lost = sorted(name for name, answer in answers.items() if answer is False)
    if lost:
        databases = ", ".join(sorted({one for name in lost for one in names[name]})[:3])
        return [
            blocking(
                "locale",
                f"This machine lacks the locale {', '.join(lost)} of {databases}.",
                "Generate it (`locale-gen`, or the package with the language's locales), then check again.",
                ServerMismatch,
            )
        ]
    if None in answers.values() or not answers:
        return []
    return [fine("locale", f"The locales of the databases are here: {', '.join(sorted(answers))}.")]


def opens(facts: ServerFacts, name: str, known: Callable[[str], bool | None]) -> bool:
    """Whether nothing is known to be missing for a database. Args: as of ``check_locales``."""
    needed = {locale for one in facts.databases if one.name == name for locale in (one.collate, one.ctype)}
    return not any(known(locale) is False for locale in needed - {""})


def has_locale(name: str) -> bool | None:
    """Whether the C library of this machine knows a locale; None where it does not tell (glibc does)."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    library.freelocale.argtypes = [ctypes.c_void_p]
    made = library.newlocale(_CTYPE_AND_COLLATE, name.encode(), None)
    if made:
        library.freelocale(made)
    return bool(made)
