"""Condemned lists: what a prune found dead and a later one may delete.

    object   condemned/<32 digits>, sealed, kind 8: {"keys": [keys of objects], "time"}

Nobody adopts what lies in a condemned pack. A list counts from the store's time of its object; it goes when everything
in it is deleted or needed again. Source: ``docs/format.md``, Prune and decision 5.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from datamanager.base.errors import IntegrityError, ObjectMissing
from datamanager.repository.format import Kind, canonical_json, pack_id
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

FOLDER = "condemned/"
_KEY = re.compile(r"^condemned/[0-9a-f]{32}\Z")
# The names that a prune may ever delete by a list; a list that names anything else is damaged.
_DELETABLE = re.compile(
    r"^(?:(?:packs|meta|meta-b)/[0-9a-f]{2}/[0-9a-f]{32}(?:\.[1-9][0-9]{0,8})?"
    r"|manifests(?:-b)?/\d{8}T\d{6}Z-[0-9a-f]{8})\Z",
    re.ASCII,
)
_KEYS_PER_LIST = 40_000  # 2.3 MB of JSON at most


@dataclass(frozen=True, slots=True)
class CondemnedList:
    """One list. ``mtime`` is the store's time at which it was put."""

    key: str
    mtime: float
    keys: frozenset[str]


def read_condemned(repository: Repository) -> tuple[list[CondemnedList], list[str]]:
    """Every list, and the keys of those that cannot be read, which are reported. Raises: StoreError."""
    found: list[CondemnedList] = []
    unreadable: list[str] = []
    for one in repository.storage.list(FOLDER):
        if not _KEY.match(one.key):
            continue
        try:
            plain, _ = repository.objects.get_small(Kind.CONDEMNED, one.key, [one.key])
            found.append(CondemnedList(one.key, one.mtime, frozenset(_keys(plain, one.key))))
        except ObjectMissing:
            continue  # another prune has settled it
        except UNREADABLE as error:
            repository.objects.report(f"{error.message}; the next prune condemns anew what it named")
            unreadable.append(one.key)
    return found, unreadable


def put_condemned(repository: Repository, keys: Iterable[str]) -> list[str]:
    """Condemn these objects, durably; returns the keys of the lists. Raises: StoreError."""
    written = []
    names = sorted(keys)
    for start in range(0, len(names), _KEYS_PER_LIST):
        written.append(f"{FOLDER}{secrets.token_hex(16)}")
        time = repository.clock.now().isoformat(timespec="seconds")
        plain = canonical_json({"keys": names[start : start + _KEYS_PER_LIST], "time": time})
        repository.objects.put_small(Kind.CONDEMNED, written[-1], written[-1:], plain)
    if written:
        repository.storage.barrier()
    return written


def condemned_packs(repository: Repository) -> set[bytes]:
    """Ids of the packs that nobody may adopt from. Ask after taking a lease.

    When a list cannot be read this is every pack there is: any of them may stand in it. Raises: StoreError.
    """
    lists, unreadable = read_condemned(repository)
    keys: Iterable[str] = (key for one in lists for key in one.keys)
    if unreadable:
        keys = (one.key for one in repository.storage.list("packs/"))
    return {identity for key in keys if key.startswith("packs/") and (identity := pack_id(key)) is not None}


def _keys(plain: bytes, name: str) -> list[str]:
    try:
        keys = [str(one) for one in json.loads(plain)["keys"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise IntegrityError(f"read {name}: malformed condemned list") from error
    if not all(_DELETABLE.match(key) for key in keys):
        raise IntegrityError(f"read {name}: it names what nobody may delete")
    return keys
