"""Small value types: log sequence numbers, byte sizes, durations in words, secrets."""

from __future__ import annotations

import re
from typing import Self

_LSN = re.compile(r"^([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Lsn(int):
    """A position in the write-ahead log, in bytes; prints as PostgreSQL prints it (``16/B374D848``).

    Source: PostgreSQL documentation, section 8.20 (pg_lsn type).
    """

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``X/Y`` in hexadecimal. Raises ValueError on anything else."""
        match = _LSN.match(text)
        if match is None:
            raise ValueError(f"not a log sequence number: {text!r}")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"


def parse_size(text: str) -> int:
    """Read ``300MB``, ``1.5 GiB`` or ``4096`` as bytes; the letters mean powers of 1024.

    Raises: ValueError.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f"not a size: {text!r} (write for example 300MB or 2GiB)")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def format_size(size_bytes: float) -> str:
    """``1536`` as ``1.5 KiB``; three significant digits at most."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        digits = 0 if unit == "B" or abs(value) >= 99.95 else 1
        if abs(round(value, digits)) < 1024:
            return f"{value:.{digits}f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``; below ten seconds with one decimal."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


class Secret:
    """Bytes that never print: passphrases, recovery codes, keys."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | str) -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves, for the one place that needs them."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)
