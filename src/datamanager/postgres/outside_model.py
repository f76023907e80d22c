"""What is kept of a configuration file that lies outside the data directory, where BASE_BACKUP does not look."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# They stand in the manifest, which is read at every backup: configuration and certificates together have some 50 KiB.
MOST_OUTSIDE_BYTES = 1 << 20


class OutsideRole(StrEnum):
    """What the server does with a file; the first three values are the names of the settings that point to it."""

    CONFIG = "config_file"
    HBA = "hba_file"
    IDENT = "ident_file"
    INCLUDED = "included"
    CERTIFICATE = "certificate"
    PRIVATE_KEY = "private_key"


@dataclass(frozen=True, slots=True)
class OutsideFile:
    """One file.

    Args:
        path: as the server names it, absolute.
        role: a value of OutsideRole.
        mode: permission bits; those of a file that the server read for us are unknown and count as 0640.
        size: in bytes.
        content: each byte as the character of that number (Latin-1); None for a file that was left out.
        read: ``disk`` or ``server``: who read it; empty for one that was left out.
        left_out: why, as a clause; empty for one that is kept.
    """

    path: str
    role: str
    mode: int
    size: int
    content: str | None
    read: str = ""
    left_out: str = ""

    @property
    def data(self) -> bytes | None:
        """The content. Raises: ValueError, when it is no Latin-1 (a damaged manifest)."""
        return None if self.content is None else self.content.encode("latin-1")
