"""Names that people give: safe as a file name on every system, and said plainly when they are not (R42).

A cluster or repository is named in commands and file names: letters of English, digits, ``-`` and ``_``. A backup is
named for people: letters of any language, digits, spaces and ``-_.,()+&'``.
"""

from __future__ import annotations

import re
import unicodedata

from datamanager.base.errors import UsageError

MAX_NAME = 63
MAX_BACKUP_NAME_BYTES = 120  # leaves room for a date and a suffix within the 255 bytes of a file name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PUNCTUATION = " -_.,()+&'"
# Windows takes these for devices, with any extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_WORDS_TAKEN = frozenset({"latest", "all", "none"})


def check_name(what: str, name: str) -> str:
    """The name of a cluster or repository as given.

    Args: what - ``cluster`` or ``repository``, for the message.
    Raises: UsageError, with a name that would do.
    """
    fits = _NAME.fullmatch(name) and len(name) <= MAX_NAME
    if fits and not _DEVICES.fullmatch(name) and name.lower() not in _WORDS_TAKEN:
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    suggested = re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_").lower()[:MAX_NAME] or what
    if _DEVICES.fullmatch(suggested) or suggested in _WORDS_TAKEN:
        suggested = f"{suggested}-{what}"
    raise UsageError(
        f"name {what}: {name!r} cannot be used",
        hint=f"Use English letters, digits, - and _, at most {MAX_NAME}, for example {suggested}.",
    )


def check_backup_name(name: str) -> str:
    """The name of a backup, composed (NFC).

    Raises: UsageError, with a name that would do.
    """
    composed = unicodedata.normalize("NFC", name)
    refused = [letter for letter in composed if not _is_allowed(letter)]
    if refused:
        _refuse(composed, f"it holds {_shown(refused[0])}")
    if not composed.strip():
        _refuse(composed, "it is empty")
    if composed != composed.strip(" .") or composed.startswith(("-", "+")):
        _refuse(composed, "it begins or ends with a space, a dot or a sign")
    if len(composed.encode()) > MAX_BACKUP_NAME_BYTES:
        _refuse(composed, f"it has more than {MAX_BACKUP_NAME_BYTES} bytes")
    if _DEVICES.fullmatch(composed):
        _refuse(composed, "Windows keeps that name for a device")
    return composed


def suggest_backup_name(name: str) -> str:
    """The nearest name that ``check_backup_name`` takes."""
    kept = "".join(letter if _is_allowed(letter) else "-" for letter in unicodedata.normalize("NFC", name))
    kept = re.sub(r"-{2,}", "-", kept).strip(" .-+")
    while len(kept.encode()) > MAX_BACKUP_NAME_BYTES:
        kept = kept[:-1].rstrip(" .")
    if not kept or _DEVICES.fullmatch(kept):
        return "nightly backup"
    return kept


def _refuse(name: str, cause: str) -> None:
    raise UsageError(
        f"name backup: {cause}",
        hint=f"Use letters, digits, spaces and {_PUNCTUATION.strip()}, for example {suggest_backup_name(name)!r}.",
    )


def _is_allowed(letter: str) -> bool:
    return letter in _PUNCTUATION or unicodedata.category(letter)[0] in "LNM"


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else f"the control character U+{ord(letter):04X}"
