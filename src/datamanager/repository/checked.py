"""When each folder of data packs was last read whole: what the rolling verify remembers, in the repository itself.

    object   checked/<n>, sealed, kind 9, n of 8 decimal digits: {"time", "folders": {"<2>": time of its last reading}}

Nothing is overwritten: the state is put under the next number, then the older ones go. Times are those of the store's
clock, as far as it can be asked, since they are compared with the times of packs.
Source: ``docs/format.md`` decision 6.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime

from datamanager.base.errors import IntegrityError, ObjectExists
from datamanager.repository.format import Kind, canonical_json
from datamanager.repository.objects import UNREADABLE
from datamanager.repository.repository import Repository

FOLDER = "checked/"
_KEY = re.compile(r"^checked/([0-9]{8})\Z")
_FAN = re.compile(r"^[0-9a-f]{2}\Z")
_TRIES = 5  # others may write the same number at the same time; five such losses in a row are no accident


def load_checked(repository: Repository) -> dict[str, float]:
    """Seconds since 1970 of the last whole reading, by folder below ``packs/``; folders never read are absent.

    Of several states the readable one with the highest number counts; one that cannot be read is reported.
    Raises: StoreError.
    """
    for key in reversed(_keys(repository)):
        try:
            return read_checked(repository, key)
        except UNREADABLE as error:
            repository.objects.report(f"{error.message}; an older state of the rolling verify is used")
    return {}


def read_checked(repository: Repository, key: str) -> dict[str, float]:
    """One stored state. Raises: IntegrityError, FormatUnsupported, ObjectMissing, StoreError."""
    plain, _ = repository.objects.get_small(Kind.CHECKED, key, [key])
    try:
        folders = json.loads(plain)["folders"]
        return {
            str(name): datetime.fromisoformat(time).timestamp() for name, time in folders.items() if _FAN.match(name)
        }
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise IntegrityError(f"read {key}: malformed state of the rolling verify") from error


def save_checked(repository: Repository, read: Mapping[str, float], now: float) -> str:
    """Note that these folders were read whole at these times; what is known of the others stays.

    Returns: the key written. Raises: StoreError, ObjectExists when others write again and again.
    """
    folders = load_checked(repository)
    for name, time in read.items():
        folders[name] = max(time, folders.get(name, time))
    value = {"time": _text(now), "folders": {name: _text(time) for name, time in folders.items()}}
    plain = canonical_json(value)
    key = _put_next(repository, plain)
    repository.storage.barrier()
    for older in _keys(repository):
        if older < key:
            repository.storage.delete(older)
    return key


def _put_next(repository: Repository, plain: bytes) -> str:
    tries = 0
    while True:
        keys = _keys(repository)
        number = int(keys[-1].removeprefix(FOLDER)) + 1 if keys else 1
        key = f"{FOLDER}{number:08d}"
        tries += 1
        try:
            repository.objects.put_small(Kind.CHECKED, key, [key], plain)
        except ObjectExists:
            if tries == _TRIES:
                raise
            continue
        return key


def _keys(repository: Repository) -> list[str]:
    return sorted(one.key for one in repository.storage.list(FOLDER) if _KEY.match(one.key))


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="seconds")
