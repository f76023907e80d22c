"""Numbers, layouts and names of format 1.

Source: ``docs/format.md``; sections are named where they apply. Integers are little-endian unless said otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import IntEnum
from struct import Struct
from typing import Any

FORMAT = 1
SIGNATURE = b"dmpg1"  # begins every AAD and every key derivation of this format

# -- bounds: checked before anything is allocated (docs/format.md, Bounds) ------------------------------------------
PAGES_PER_CHUNK = 32  # a page mask of a chunk is one u32
MAX_CHUNK_BYTES = 1 << 20  # 32 pages of the largest block size, 32 KiB
META_CHUNK_BYTES = 256 << 10
PACK_BYTES = 32 << 20  # a pack is closed at this size: one PUT, FAT-safe, a crash loses no more
MAX_CONTAINER_BYTES = 64 << 20
MAX_CHUNKS_PER_PACK = 131_072  # keeps the raw directory at 3 MiB
MAX_DIRECTORY_BYTES = 4 << 20
MAX_SMALL_OBJECT_BYTES = 4 << 20
MAX_LAYERS = 8
MAX_SLOTS = 16
MAX_PATH_BYTES = 1024
MAX_PAGES_PER_FILE = 1 << 32
PADDING_BYTES = 64 << 10
ZERO_PACK = 0xFFFF_FFFF  # the pack number of a row whose pages are zeros


class Kind(IntEnum):
    """What a container holds."""

    PACK = 1
    META = 2
    RING = 3
    MANIFEST = 4
    MARK = 5
    LEASE = 6
    DAMAGED = 7
    CONDEMNED = 8
    CHECKED = 9
    WAL = 10
    LINE = 11


# Header flag of a data pack: a later generation, whose directory has a page size and a mask of pages for each chunk.
MASKED = 1

# magic 8 | kind u8 | flags u8 | epoch u16 | zero u32 | id 16 | salt 32
HEADER = Struct("<8sBBHI16s32s")
MAGIC = b"DMPG0001"
# directory bytes u32 | zero u32 | end magic 8
TRAILER = Struct("<II8s")
END_MAGIC = b"DMPG0END"
TAG_BYTES = 16
DIRECTORY_NUMBER = 0xFFFF_FFFF
PADDING_NUMBER = 0xFFFF_FFFE

CONFIG = "config"
BACKUP_ID = re.compile(r"^\d{8}T\d{6}Z-[0-9a-f]{8}\Z", re.ASCII)
_PACK_KEY = re.compile(r"^(packs|meta|meta-b)/([0-9a-f]{2})/([0-9a-f]{32})(?:\.([1-9][0-9]{0,8}))?\Z", re.ASCII)


WAL_FOLDER = "wal"  # the one folder inside which a put may make others
LATER_FOLDERS = ("damaged", "condemned", "checked", WAL_FOLDER)  # the first release did not make them; writers do


def folders() -> list[str]:
    """Every folder of a repository, made at ``repo init``: putting an object never makes one (decision 10)."""
    fan = [f"{number:02x}" for number in range(256)]
    plain = ["keys", "ring", "manifests", "manifests-b", "marks", "leases", "wheels", *LATER_FOLDERS]
    return plain + [f"{top}/{two}" for top in ("packs", "meta", "meta-b") for two in fan]


def pack_key(pack: bytes, generation: int = 1) -> str:
    """Where a data pack lies; generations 2, 3 … are the same pack written again, with the pages still needed."""
    name = pack.hex()
    return f"packs/{name[:2]}/{name}" + (f".{generation}" if generation > 1 else "")


def pack_generation(key: str) -> tuple[bytes, int] | None:
    """Id and generation of a key under ``packs/``, ``meta/`` or ``meta-b/``; None for anything else that lies there."""
    match = _PACK_KEY.match(key)
    if match is None or match[2] != match[3][:2] or match[4] == "1" or (match[4] and match[1] != "packs"):
        return None
    return bytes.fromhex(match[3]), int(match[4] or 1)


def pack_id(key: str) -> bytes | None:
    """The id that a key under ``packs/``, ``meta/`` or ``meta-b/`` names; None for anything else that lies there."""
    found = pack_generation(key)
    return found[0] if found else None


def meta_keys(pack: bytes) -> tuple[str, str]:
    name = pack.hex()
    return f"meta/{name[:2]}/{name}", f"meta-b/{name[:2]}/{name}"


def manifest_keys(backup: str) -> tuple[str, str]:
    return f"manifests/{backup}", f"manifests-b/{backup}"


def slot_keys(slot: bytes) -> tuple[str, str]:
    return f"keys/{slot.hex()}-a", f"keys/{slot.hex()}-b"


def ring_keys(number: int) -> tuple[str, str]:
    return f"ring/{number:08d}-a", f"ring/{number:08d}-b"


def named_id(name: str) -> bytes:
    """The 16-byte id of an object found by its name; twins share the name without its twin mark."""
    return hashlib.sha256(name.encode()).digest()[:16]


def canonical_json(value: Any) -> bytes:
    """One byte sequence per value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
