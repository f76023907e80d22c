"""What every store agrees on: which keys are allowed, and which bytes a range means. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datamanager.storage.base import Buffer

# No leading dot (temporary files and the system's own folders start with one), no trailing dot (Windows drops it).
_SEGMENT = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_SEGMENT_PATTERN = re.compile(_SEGMENT)
_KEY_PATTERN = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def check_key(key: str) -> None:
    """Refuse a key that some store could not hold, or that would lead out of the store.

    Raises: ValueError - a fault of the program, never of its user.
    """
    if _KEY_PATTERN.fullmatch(key) is None:
        raise ValueError(f"not a key of an object: {key!r}")


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that is neither empty nor a key followed by ``/``. Raises: ValueError."""
    if prefix and not (prefix.endswith("/") and _KEY_PATTERN.fullmatch(prefix[:-1])):
        raise ValueError(f"not a prefix of keys: {prefix!r}")


def is_segment(name: str) -> bool:
    """Whether a folder's entry of this name can be part of a key; ``lost+found`` or ``.Trash`` cannot."""
    return _SEGMENT_PATTERN.fullmatch(name) is not None


def byte_range(size: int, offset: int, length: int | None) -> tuple[int, int]:
    """The part of an object of ``size`` bytes that ``get(offset, length)`` means.

    Args: offset - from the start, or from the end when negative; length - bytes, or None for up to the end.
    Returns: (start, stop) with 0 <= start <= stop <= size: the bytes of the range that exist.
    Raises: ValueError, on a negative length.
    """
    if length is not None and length < 0:
        raise ValueError(f"not a length: {length}")
    first = offset if offset >= 0 else size + offset
    last = size if length is None else first + length
    start = min(max(first, 0), size)
    return start, max(start, min(last, size))


def plain_parts(data: Sequence[Buffer]) -> list[memoryview]:
    """The parts as views of single bytes, empty ones left out.

    Raises: ValueError, when nothing is left: an empty object is what a power cut leaves, so none is ever stored.
    """
    parts = [view for view in (memoryview(part).cast("B") for part in data) if view.nbytes]
    if not parts:
        raise ValueError("an object holds at least one byte")
    return parts
