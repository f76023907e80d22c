#!/usr/bin/env python3
"""Restore a PostgreSQL backup from the folder of a DataManager repository. One file, no installation, no internet.

    python3 rescue.py list                          which backups are here
    python3 rescue.py check [BACKUP]                read and authenticate all that a backup needs; writes nothing
    python3 rescue.py restore [BACKUP] TARGET       write the data directory into the new or empty folder TARGET
    python3 rescue.py wal [BACKUP] FOLDER           write the archived WAL since that backup into the empty FOLDER

BACKUP is a name from the list, or "latest", which is the default. The recovery code (or the passphrase) is asked for,
or read from --code-file, --passphrase-file or --key-file.

Needs Python 3.8 or newer, and AES-GCM and zstd from the first of: the packages cryptography and zstandard (or
Python 3.14); their wheels in the folder wheels/ beside this file; the system's libcrypto and libzstd.
BEFORE YOU RUN THIS FILE, compare its SHA-256 with the one on your printed kit: README.txt says how.

Ends with 0 done, 3 done with warnings, 1 the system refused something, 2 wrong use, 40 stored bytes are damaged,
41 newer format, 42 wrong code or passphrase, 43 no repository, 50 unfit target, 51 too little room, 130 interrupted.

Follows docs/format.md, version 1. Memory stays flat whatever the size of the backup.
"""

from __future__ import annotations

import argparse
import array
import atexit
import base64
import binascii
import ctypes
import getpass
import hashlib
import heapq
import hmac
import importlib
import io
import json
import os
import platform
import re
import shutil
import stat
import struct
import sys
import sysconfig
import tempfile
import time
import unicodedata
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence  # noqa: UP035 - Python 3.8 subscripts no others

# SHA-256 of the wheels this file was delivered with, by name. Filled in where the file is delivered; no other wheel
# is loaded, because the drive may have been in other hands.
WHEEL_SHA256: dict[str, str] = {}

FORMAT = 1
SIGNATURE = b"dmpg1"
CONTAINER_MAGIC, PACK_END, SLOT_MAGIC = b"DMPG0001", b"DMPG0END", b"DMPGKEY1"
HEADER, TRAILER = struct.Struct("<8sBBHI16s32s"), struct.Struct("<II8s")
SLOT = struct.Struct("<8sBBBBI16s16s32s16s48s")
BLOCK = struct.Struct("<IIII")
PACK, META, RING, MANIFEST, MARK, WAL, LINE = 1, 2, 3, 4, 5, 10, 11
MASKED = 1  # header flag of a later generation of a data pack
GONE, COMPOSED, MAX_FLAGS = 1, 4, 7
TAG_BYTES = 16
DIRECTORY_NUMBER = ZERO_PACK = 0xFFFFFFFF

# Bounds of the format, checked before anything is allocated (docs/format.md, Bounds).
MIB = 1 << 20
MAX_CONFIG, MAX_RING, MAX_SMALL, MAX_DIRECTORY, MAX_CONTAINER = 64 << 10, MIB, 4 * MIB, 4 * MIB, 64 * MIB
MAX_PACK_CHUNKS, MAX_CHUNK, MAX_META_CHUNK, CHUNK_PAGES = 131072, MIB, 256 << 10, 32
MAX_SLOTS, MAX_SLOT, MAX_LAYERS, MAX_PATH, MAX_MARKS = 16, SLOT.size + 65, 8, 1024, 1000000
MAX_LOG_N, MAX_R, MAX_P = 20, 8, 4

BACKUP_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
CODE_LETTERS, STANDARD_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
OPEN_SECRET = b"datamanager: this repository is not encrypted"
PASSPHRASE, CODE, KEY_FILE, OPEN = 1, 2, 3, 4
CONTROL_FILE, UNFINISHED = b"global/pg_control", b"global/pg_control.unfinished-restore"

MAX_STRETCH, MAX_SEGMENT, LOG = 32 * MIB, 1024 * MIB, 1 << 32
LINE_NAME, STRETCH_NAME = "[0-9a-f]{8}-[0-9a-f]{8}", re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})")

CACHED_CHUNK_BYTES, CACHED_DIRECTORY_CHUNKS, OPEN_PACKS = 16 * MIB, 1000000, 8


class RescueError(Exception):
    """Something that ends the run, said to a person: what, what to do, exit code."""

    code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Usage(RescueError):
    code = 2


class Damaged(RescueError):
    code = 40


class Newer(RescueError):
    code = 41


class WrongSecret(RescueError):
    code = 42


class NoRepository(RescueError):
    code = 43


class UnfitTarget(RescueError):
    code = 50


class TooSmall(RescueError):
    code = 51


def plain(text: object) -> str:
    """Text from the repository made safe to show: no control characters, no surrogates."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in str(text))


def shown(path: bytes) -> str:
    return plain(path.decode("utf-8", "backslashreplace"))


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Notices:
    """Warnings, each said once; ``count`` decides between exit codes 0 and 3."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._said)

    def __call__(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say("NOTE: " + text)


# -- where AES-GCM and zstd come from ---------------------------------------------------------------------------------

Cipher = Callable[[bytes, bytes, bytes], bytes]  # nonce, ciphertext and tag, associated data -> plain; ValueError


class Libraries(NamedTuple):
    """``cipher`` makes a Cipher of a key; ``unzstd`` decompresses one frame to exactly so many bytes, or ValueError."""

    cipher: Callable[[bytes], Cipher]
    unzstd: Callable[[bytes, int], bytes]
    words: str


def _aes_package() -> Callable[[bytes], Cipher]:
    aead = importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
    invalid = importlib.import_module("cryptography.exceptions").InvalidTag

    def make(key: bytes) -> Cipher:
        box = aead.AESGCM(key)

        def decrypt(nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
            try:
                return bytes(box.decrypt(nonce, sealed, associated))
            except invalid:
                raise ValueError("not authentic") from None

        return decrypt

    return make


def _zstd_standard() -> Callable[[bytes, int], bytes]:
    zstd = importlib.import_module("compression.zstd")

    def unzstd(frame: bytes, size: int) -> bytes:
        try:
            decompressor = zstd.ZstdDecompressor()
            data = bytes(decompressor.decompress(frame, max_length=size + 1))
        except zstd.ZstdError as error:
            raise ValueError(str(error)) from None
        if not decompressor.eof:
            raise ValueError("cut short")
        return data

    return unzstd


def _zstd_package() -> Callable[[bytes, int], bytes]:
    zstandard = importlib.import_module("zstandard")

    def unzstd(frame: bytes, size: int) -> bytes:
        try:
            return bytes(zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1)))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None

    return unzstd


def _load(names: Sequence[str], folder: Path | None) -> Any:
    """The first shared library that loads, from ``folder``, from where the system looks, from Python's own folder."""
    folders = [folder] if folder else []
    if os.name == "nt":
        folders += [Path(sys.base_prefix) / "DLLs", Path(sys.base_prefix)]
    for name in names:
        for place in [str(one / name) for one in folders] + [name]:
            try:
                return ctypes.CDLL(place)
            except OSError:
                continue
    raise OSError("none of " + ", ".join(names))


_CRYPTO_NAMES = {
    "nt": ("libcrypto-3-x64.dll", "libcrypto-3.dll", "libcrypto-3-arm64.dll", "libcrypto-1_1.dll"),
    "darwin": ("/opt/homebrew/lib/libcrypto.3.dylib", "/usr/local/lib/libcrypto.3.dylib", "libcrypto.3.dylib"),
    "posix": ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so.10", "libcrypto.so.1.0.0", "libcrypto.so"),
}
_ZSTD_NAMES = {
    "nt": ("libzstd.dll", "zstd.dll"),
    "darwin": ("/opt/homebrew/lib/libzstd.1.dylib", "/usr/local/lib/libzstd.1.dylib", "libzstd.1.dylib"),
    "posix": ("libzstd.so.1", "libzstd.so"),
}
_SYSTEM = "darwin" if sys.platform == "darwin" else os.name


def _aes_system(folder: Path | None) -> Callable[[bytes], Cipher]:
    """AES-256-GCM of OpenSSL's libcrypto. Source: EVP_EncryptInit(3)."""
    lib = _load(_CRYPTO_NAMES[_SYSTEM], folder)
    lib.EVP_CIPHER_CTX_new.restype = lib.EVP_aes_256_gcm.restype = ctypes.c_void_p
    pointer, number = ctypes.c_void_p, ctypes.c_int
    lib.EVP_CIPHER_CTX_free.argtypes = [pointer]
    lib.EVP_DecryptInit_ex.argtypes = [pointer, pointer, pointer, ctypes.c_char_p, ctypes.c_char_p]
    lib.EVP_DecryptUpdate.argtypes = [pointer, pointer, ctypes.POINTER(number), ctypes.c_char_p, number]
    lib.EVP_DecryptFinal_ex.argtypes = [pointer, pointer, ctypes.POINTER(number)]
    lib.EVP_CIPHER_CTX_ctrl.argtypes = [pointer, number, number, pointer]
    gcm, set_tag = lib.EVP_aes_256_gcm(), 0x11

    def decrypt(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        text, tag = sealed[:-TAG_BYTES], ctypes.create_string_buffer(sealed[-TAG_BYTES:], TAG_BYTES)
        out, length = ctypes.create_string_buffer(len(text) + 16), number(0)
        context = lib.EVP_CIPHER_CTX_new()
        try:
            good = (
                lib.EVP_DecryptInit_ex(context, gcm, None, key, nonce) == 1
                and lib.EVP_DecryptUpdate(context, None, length, associated, len(associated)) == 1
                and lib.EVP_DecryptUpdate(context, out, length, text, len(text)) == 1
                and lib.EVP_CIPHER_CTX_ctrl(context, set_tag, TAG_BYTES, tag) == 1
                and lib.EVP_DecryptFinal_ex(context, out, length) == 1
            )
        finally:
            lib.EVP_CIPHER_CTX_free(context)
        if not good:
            raise ValueError("not authentic")
        return ctypes.string_at(out, len(text))

    def make(key: bytes) -> Cipher:
        return lambda nonce, sealed, associated: decrypt(key, nonce, bytes(sealed), associated)

    return make


def _zstd_system(folder: Path | None) -> Callable[[bytes, int], bytes]:
    """Source: zstd.h, simple API."""
    lib = _load(_ZSTD_NAMES[_SYSTEM], folder)
    size_t = ctypes.c_size_t
    lib.ZSTD_decompress.restype, lib.ZSTD_isError.restype = size_t, ctypes.c_uint
    lib.ZSTD_decompress.argtypes = [ctypes.c_void_p, size_t, ctypes.c_char_p, size_t]
    lib.ZSTD_isError.argtypes = [size_t]

    def unzstd(frame: bytes, size: int) -> bytes:
        out = ctypes.create_string_buffer(max(size, 1))
        length = lib.ZSTD_decompress(out, size, frame, len(frame))
        if lib.ZSTD_isError(length):
            raise ValueError("not a zstd frame of this size")
        return ctypes.string_at(out, length)

    return unzstd


def _proved_cipher(make: Callable[[bytes], Cipher]) -> Callable[[bytes], Cipher]:
    """Source: The Galois/Counter Mode of Operation (McGrew, Viega), test case 14."""
    sealed = bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")
    decrypt = make(bytes(32))
    if decrypt(bytes(12), sealed, b"") != bytes(16):
        raise RuntimeError("it decrypts wrongly")
    try:
        decrypt(bytes(12), sealed[:-1] + b"\0", b"")
    except ValueError:
        return make
    raise RuntimeError("it does not authenticate")


def _proved_zstd(unzstd: Callable[[bytes, int], bytes]) -> Callable[[bytes, int], bytes]:
    if unzstd(b"\x28\xb5\x2f\xfd\x20\x06\x31\x00\x00rescue", 6) != b"rescue":
        raise RuntimeError("it decompresses wrongly")
    return unzstd


def _attempt(make: Callable[[], Any], what: str, tried: list[str]) -> Any:
    """What ``make`` gives, or None. A package built for another interpreter may fail in any way, panics included."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - see above
        tried.append(f"{what}: {plain(error) or type(error).__name__}")
        return None


def _forget(package: str) -> None:
    """Drop a half-imported package, so that its wheel gets a clean start."""
    for name in [one for one in sys.modules if one == package or one.startswith(package + ".")]:
        del sys.modules[name]


def find_libraries(wheels: Path, any_wheels: bool, folder: Path | None) -> Libraries:
    """AES-GCM and zstd from the first source that works, each proved with a known answer."""
    tried: list[str] = []
    aes = _attempt(lambda: _proved_cipher(_aes_package()), "package cryptography", tried)
    unzstd = _attempt(lambda: _proved_zstd(_zstd_standard()), "Python's own zstd (3.14 and newer)", tried)
    unzstd = unzstd or _attempt(lambda: _proved_zstd(_zstd_package()), "package zstandard", tried)
    words = ["package cryptography" if aes else "", "Python's package for zstd" if unzstd else ""]
    if not (aes and unzstd) and unpack_wheels(wheels, any_wheels, tried):
        if not aes:
            _forget("cryptography")
            aes = _attempt(lambda: _proved_cipher(_aes_package()), "wheel of cryptography", tried)
            words[0] = "wheel of cryptography" if aes else ""
        if not unzstd:
            _forget("zstandard")
            unzstd = _attempt(lambda: _proved_zstd(_zstd_package()), "wheel of zstandard", tried)
            words[1] = "wheel of zstandard" if unzstd else ""
    if not aes:
        aes = _attempt(lambda: _proved_cipher(_aes_system(folder)), "the system's libcrypto", tried)
        words[0] = "the system's libcrypto"
    if not unzstd:
        unzstd = _attempt(lambda: _proved_zstd(_zstd_system(folder)), "the system's libzstd", tried)
        words[1] = "the system's libzstd"
    if not (aes and unzstd):
        missing = " and ".join(name for name, found in (("AES-GCM", aes), ("zstd", unzstd)) if not found)
        raise RescueError(
            f"this machine offers no {missing}\n  tried: " + "\n  tried: ".join(tried),
            "Copy the wheels folder of the repository beside rescue.py; or install the packages cryptography and "
            "zstandard, or OpenSSL and libzstd; on Windows PostgreSQL's bin folder has both: --libraries FOLDER.",
        )
    return Libraries(aes, unzstd, f"{words[0]}; {words[1]}")


def unpack_wheels(folder: Path, any_wheels: bool, tried: list[str]) -> bool:
    """Put the wheels that fit this interpreter on the path, unpacked into a temporary folder."""
    try:
        names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".whl"))
    except OSError:
        tried.append(f"wheels: there is no folder {folder}")
        return False
    fitting = [name for name in names if wheel_fits(name)]
    if not fitting:
        tried.append(f"wheels: none of the {len(names)} in {folder} is for this Python and system")
    place = None
    for name in fitting:
        data = read_regular(folder / name, MAX_CONTAINER)
        if hashlib.sha256(data).hexdigest() != WHEEL_SHA256.get(name) and not any_wheels:
            tried.append(f"wheels: {name} is not the one that this rescue.py was delivered with; not used")
            continue
        if place is None:
            place = tempfile.mkdtemp(prefix="rescue-")
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            sys.path.insert(0, place)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(place)
    importlib.invalidate_caches()
    return place is not None


def wheel_fits(name: str) -> bool:
    """Whether a wheel of this name runs here. Source: PEP 425, PEP 600, PEP 656."""
    parts = name[: -len(".whl")].split("-")
    if len(parts) < 5:
        return False
    pythons, abis, platforms = (part.split(".") for part in parts[-3:])
    major, minor = sys.version_info[:2]
    own = f"cp{major}{minor}"
    for python in pythons:
        if "none" in abis and python in (f"py{major}", own):
            break
        if python == own and own in abis:
            break
        match = re.fullmatch(rf"cp{major}([0-9]+)", python)
        if match and "abi3" in abis and int(match.group(1)) <= minor:
            break
    else:
        return False
    return any(platform_fits(one) for one in platforms)


def platform_fits(tag: str) -> bool:
    """Whether a platform tag of a wheel means this system."""
    here = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if tag == "any" or tag == here:
        return True
    machine = here.split("_", 1)[1] if here.startswith("linux_") else platform.machine()
    tag = re.sub("^manylinux1_", "manylinux_2_5_", re.sub("^manylinux2010_", "manylinux_2_12_", tag))
    tag = re.sub("^manylinux2014_", "manylinux_2_17_", tag)
    match = re.fullmatch(r"(manylinux|musllinux|macosx)_([0-9]+)_([0-9]+)_(\w+)", tag)
    if match is None:
        return False
    system, version = match.group(1), (int(match.group(2)), int(match.group(3)))
    if system == "macosx":
        release = tuple(int(one) for one in platform.mac_ver()[0].split(".")[:2] if one)
        return sys.platform == "darwin" and version <= release and match.group(4) in (machine, "universal2")
    if not sys.platform.startswith("linux") or match.group(4) != machine:
        return False
    name, release_text = platform.libc_ver()
    if system == "musllinux":
        return name != "glibc"
    numbers = re.match(r"([0-9]+)\.([0-9]+)", release_text)
    return name == "glibc" and numbers is not None and version <= (int(numbers.group(1)), int(numbers.group(2)))


# -- bytes of the format ----------------------------------------------------------------------------------------------


def read_regular(path: Path, bound: int, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a regular file that is no link and no larger than ``bound``. Raises: Damaged, FileNotFoundError."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(str(path), flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > bound:
            raise Damaged(f"{path} is not a file of a repository, or impossibly large")
        return read_range(file, offset, status.st_size - offset if length is None else length, str(path))


def read_range(file: io.RawIOBase, offset: int, length: int, name: str) -> bytes:
    """Exactly ``length`` bytes. Raises: Damaged, also when the medium reports an error."""
    parts = []
    try:
        file.seek(offset)
        while length > 0:
            part = file.read(length)
            if not part:
                raise Damaged(f"{name} is cut short")
            parts.append(part)
            length -= len(part)
    except OSError as error:
        raise Damaged(f"{name} cannot be read from the medium: {error.strerror}") from None
    return b"".join(parts)


def derive(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256. Source: RFC 5869."""
    secret = hmac.new(salt, key, hashlib.sha256).digest()
    out, block, number = b"", b"", 0
    while len(out) < length:
        number += 1
        block = hmac.new(secret, block + info + bytes([number]), hashlib.sha256).digest()
        out += block
    return out[:length]


def frame_size(frame: bytes) -> int:
    """The content size that a zstd frame states, -1 if none. Source: RFC 8878, section 3.1.1.1."""
    if len(frame) < 6 or frame[:4] != b"\x28\xb5\x2f\xfd" or frame[4] & 8:
        return -1
    single, width = frame[4] >> 5 & 1, (1, 2, 4, 8)[frame[4] >> 6]
    if width == 1 and not single:
        return -1
    start = 5 + (1 - single) + (0, 1, 2, 4)[frame[4] & 3]
    if len(frame) < start + width:
        return -1
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)


class Header(NamedTuple):
    """The first 64 bytes of a container."""

    kind: int
    flags: int
    epoch: int
    id: bytes
    salt: bytes
    data: bytes

    @classmethod
    def parse(cls, data: bytes, kind: int, identity: bytes, name: str) -> Header:
        """Raises: Damaged, Newer."""
        if len(data) < HEADER.size:
            raise Damaged(f"{name} is cut short")
        magic, found, flags, epoch, zero, own, salt = HEADER.unpack_from(data)
        if magic != CONTAINER_MAGIC:
            if magic[:4] == b"DMPG" and magic[4:].isdigit():
                raise Newer(f"{name} has a newer format", "Use the rescue.py of a newer release of DataManager.")
            raise Damaged(f"{name} is damaged at its beginning")
        if flags & ~(MASKED if kind == PACK else 0) or zero or found != kind or own != identity:
            raise Damaged(f"{name} is damaged, holds another object, or was written by a newer release")
        return cls(found, flags, epoch, own, salt, data[: HEADER.size])


class Opener:
    """Opens the numbered parts of one container."""

    def __init__(self, libraries: Libraries, key: bytes, header: Header, repository: bytes, name: str) -> None:
        kind = bytes([header.kind])
        self._decrypt = libraries.cipher(derive(key, header.salt, SIGNATURE + kind + repository, 32))
        self._unzstd = libraries.unzstd
        self._prefix = SIGNATURE + kind + repository + header.id
        self._header = header.data
        self._name = name

    def open(self, number: int, sealed: bytes, bound: int, *, exact: bool = False, whole: bool = True) -> bytes:
        """Authenticate, bound, decompress. ``whole``: the header is authenticated too. Raises: Damaged."""
        part = "" if number in (0, DIRECTORY_NUMBER) and whole else f", chunk {number}"
        associated = self._prefix + struct.pack("<I", number) + (self._header if whole else b"")
        if len(sealed) < TAG_BYTES:
            raise Damaged(f"{self._name}{part} is cut short")
        try:
            frame = self._decrypt(bytes(8) + struct.pack(">I", number), sealed, associated)
        except ValueError:
            raise Damaged(f"{self._name}{part} is damaged or was changed") from None
        size = frame_size(frame)
        if size < 0 or size > bound or (exact and size != bound):
            raise Damaged(f"{self._name}{part} states an impossible size")
        try:
            data = self._unzstd(frame, size)
        except ValueError as error:
            raise Damaged(f"{self._name}{part} does not decompress: {error}") from None
        if len(data) != size:
            raise Damaged(f"{self._name}{part} has not the size it states")
        return data


class Pack(NamedTuple):
    """An authenticated pack: where its chunks lie and how long they are.

    ``masks``: which pages of each chunk a later generation still has, ``page`` bytes each; None for a first one.
    """

    path: Path
    opener: Opener
    offsets: array.array[int]
    raw: array.array[int]
    digest: bytes
    page: int
    masks: array.array[int] | None

    def has(self, number: int, start: int, length: int) -> bool:
        """Whether the pages of those bytes of a chunk are here."""
        if self.masks is None or number >= len(self.masks):
            return True  # a chunk that does not exist is found when it is read
        first, end = start // self.page, -(-(start + length) // self.page)
        wanted = (1 << end) - (1 << first)
        return self.masks[number] & wanted == wanted

    def spans(self, number: int) -> list[tuple[int, int]]:
        """The bytes of a chunk that its frame holds, as (start, length); a chunk's last page may be short."""
        if self.masks is None:
            return [(0, self.raw[number])]
        starts = [page * self.page for page in range(CHUNK_PAGES) if self.masks[number] >> page & 1]
        return [(start, min(self.page, self.raw[number] - start)) for start in starts]


def parsed(data: bytes, name: str) -> Any:
    """Raises: Damaged."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        raise Damaged(f"{name} is malformed") from None


def named_id(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


# -- secrets ----------------------------------------------------------------------------------------------------------


class Secret(NamedTuple):
    """What a person holds: kind as in a slot, and the value that enters the derivation."""

    kind: int
    value: bytes

    def __repr__(self) -> str:
        return "Secret(***)"


def secret_of_passphrase(text: str) -> Secret:
    return Secret(PASSPHRASE, unicodedata.normalize("NFKC", text).encode())


def secret_of_code(text: str) -> Secret:
    """A recovery code as typed. Raises: WrongSecret naming the mistake."""
    letters = text.upper().translate(str.maketrans("OIL", "011"))
    letters = "".join(one for one in letters if one in CODE_LETTERS)
    if len(letters) != 36:
        raise WrongSecret(f"the recovery code has 36 letters and digits, what was given has {len(letters)}")
    value = base64.b32decode(letters[:32].translate(str.maketrans(CODE_LETTERS, STANDARD_LETTERS)))
    digest = hashlib.sha256(b"recovery code" + value).digest()[:5]
    check = base64.b32encode(digest).decode().translate(str.maketrans(STANDARD_LETTERS, CODE_LETTERS))[:4]
    if check != letters[32:]:
        raise WrongSecret("a letter of the recovery code is wrong", "Compare it with the printed kit, group by group.")
    return Secret(CODE, value)


def secret_of_key_file(data: bytes) -> Secret:
    words = data.decode("ascii", "replace").split()
    if len(words) != 2 or words[0] != "datamanager-key-1" or not re.fullmatch("[0-9a-fA-F]{64}", words[1]):
        raise WrongSecret("this is not a key file of DataManager")
    return Secret(KEY_FILE, bytes.fromhex(words[1]))


def secret_of_typing(text: str) -> Secret:
    """A code where the text is one, else a passphrase."""
    try:
        return secret_of_code(text)
    except WrongSecret:
        if re.fullmatch(r"\s*([0-9A-Za-z]{4}[-\s]+){8}[0-9A-Za-z]{4}\s*", text):
            raise
        return secret_of_passphrase(text)


class Slot(NamedTuple):
    """A key slot as stored."""

    kind: int
    scrypt: tuple[int, int, int]
    repository: bytes
    data: bytes

    @classmethod
    def parse(cls, data: bytes, name: str) -> Slot:
        """Raises: Damaged."""
        if not SLOT.size < len(data) <= MAX_SLOT or data[SLOT.size] != len(data) - SLOT.size - 1:
            raise Damaged(f"{name} is not a key slot")
        magic, kind, log_n, r, p, zero, _, repository = SLOT.unpack_from(data)[:8]
        if magic != SLOT_MAGIC or zero:
            raise Damaged(f"{name} is not a key slot")
        if kind == PASSPHRASE and not (10 <= log_n <= MAX_LOG_N and 1 <= r <= MAX_R and 1 <= p <= MAX_P):
            raise Damaged(f"{name} asks for an impossible amount of memory; it is damaged or was changed")
        return cls(kind, (log_n, r, p), repository, data)

    def open(self, secret: Secret, libraries: Libraries) -> bytes | None:
        """The root; None when the secret is another. Raises: Damaged."""
        salt, check, sealed = SLOT.unpack_from(self.data)[8:]
        value = secret.value
        if self.kind == PASSPHRASE:
            value = stretch(value, salt, *self.scrypt)
        both = derive(value, salt, SIGNATURE + b"slot" + self.repository, 48)
        if not hmac.compare_digest(both[32:], check):
            return None
        associated = self.data[: SLOT.size - 48] + self.data[SLOT.size :]
        try:
            return libraries.cipher(both[:32])(bytes(12), sealed, associated)
        except ValueError:
            raise Damaged("a key slot is damaged though the secret fits it") from None


def stretch(value: bytes, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    """scrypt. Source: RFC 7914."""
    if not hasattr(hashlib, "scrypt"):
        raise RescueError(
            "this Python has no scrypt, which a passphrase needs",
            "Use the recovery code from the printed kit instead, or another Python.",
        )
    memory = 128 * r * ((1 << log_n) + p + 2) + MIB
    return hashlib.scrypt(value, salt=salt, n=1 << log_n, r=r, p=p, maxmem=memory, dklen=32)


# -- the repository ---------------------------------------------------------------------------------------------------


class Repository:
    """A repository's folder, opened with a secret."""

    def __init__(self, root: Path, libraries: Libraries, note: Callable[[str], None]) -> None:
        self.root = root
        self.note = note
        self._libraries = libraries
        self._packs: OrderedDict[Path, Pack] = OrderedDict()
        self._cached_chunks = 0
        self._files: OrderedDict[Path, io.RawIOBase] = OrderedDict()
        self._chunks: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._chunk_bytes = 0
        self._bad_packs: dict[Path, Damaged] = {}
        self._generations: dict[str, dict[str, list[int]]] = {}
        self._epochs: dict[int, bytes] = {}
        self._config: Any = None
        self.slots = self._read_slots()
        self.id = self._identify()

    def names(self, folder: str, pattern: str) -> list[str]:
        try:
            return sorted(one.name for one in (self.root / folder).iterdir() if re.fullmatch(pattern, one.name))
        except OSError:
            return []

    def _read_slots(self) -> list[Slot]:
        slots = []
        for name in self.names("keys", "[0-9a-f]{32}-[ab]")[: 2 * MAX_SLOTS]:
            try:
                slots.append(Slot.parse(read_regular(self.root / "keys" / name, MAX_SLOT), f"keys/{name}"))
            except (Damaged, OSError) as error:
                self.note(f"{error}; its second copy is used if there is one")
        return slots

    def add_slot(self, text: str) -> None:
        """A slot from the printed kit's QR code. Raises: Damaged."""
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise Damaged("the text of the QR code is not complete") from None
        self.slots.insert(0, Slot.parse(data, "the slot from the QR code"))

    def _identify(self) -> bytes:
        """The repository's id, from config or, were that lost, from the slots. Raises: NoRepository, Newer."""
        try:
            config = json.loads(read_regular(self.root / "config", MAX_CONFIG).decode())
            identity = bytes.fromhex(config["repository"])
            number, unknown = int(config["format"]), list(config["incompat"])
            if len(identity) != 16:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RescueError):
            if not self.slots and not self.names("ring", "[0-9]{8}-[ab]"):
                raise NoRepository(
                    f"{self.root} is not the folder of a repository",
                    "Give the folder that holds config, keys and packs with --repository FOLDER.",
                ) from None
            self.note("the file config is missing or damaged; the key slots and the keyring replace it")
            return self.slots[0].repository if self.slots else bytes(16)
        self._refuse_newer(number, unknown)
        self._config = config
        return identity

    @staticmethod
    def _refuse_newer(number: int, unknown: Sequence[object]) -> None:
        if number > FORMAT or unknown:
            raise Newer(
                f"this repository has format {number} {plain(list(unknown)) if unknown else ''}, newer than this file",
                "Use the rescue.py of a newer release of DataManager.",
            )

    # -- keys ---------------------------------------------------------------------------------------------------------
    @property
    def needs_secret(self) -> bool:
        return not any(slot.kind == OPEN for slot in self.slots)

    def unlock(self, secret: Secret) -> None:
        """Open the newest ring. Raises: WrongSecret, Damaged, Newer."""
        fitting = [slot for slot in self.slots if slot.kind == secret.kind]
        failure: RescueError = WrongSecret("this is not a key of this repository", "Check for another kit or drive.")
        for slot in OrderedDict.fromkeys(fitting):
            try:
                root = slot.open(secret, self._libraries)
            except Damaged as error:
                failure = error
                continue
            if root is not None:
                self.id = slot.repository
                self._open_ring(root)
                return
        raise failure

    def _open_ring(self, root: bytes) -> None:
        names = self.names("ring", "[0-9]{8}-[ab]")
        failure: RescueError = Damaged("the keyring in the folder ring is missing")
        for number in sorted({name[:8] for name in names}, reverse=True):
            for copy in "ab":
                key = f"ring/{number}-{copy}"
                try:
                    ring = parsed(self.small(key, RING, f"ring/{number}", MAX_RING, root), key)
                    self._take_ring(ring)
                    return
                except FileNotFoundError:
                    self.note(f"{key} is missing; its second copy is used")
                except Damaged as error:
                    failure = error
                    self.note(f"{error}; its second copy is used if there is one")
        raise failure

    def _take_ring(self, ring: Any) -> None:
        try:
            epochs = {int(one["no"]): bytes.fromhex(one["key"]) for one in ring["epochs"]}
            config, identity = ring["config"], bytes.fromhex(ring["repository"])
            number, unknown = int(config["format"]), list(config["incompat"])
        except (KeyError, TypeError, ValueError):
            raise Damaged("the keyring is malformed") from None
        if identity != self.id:
            raise Damaged("the keyring belongs to another repository")
        self._refuse_newer(number, unknown)
        if self._config not in (None, config):
            self.note("the file config was changed since the repository was made; the keyring's copy of it is used")
        self._epochs = epochs

    def opener(self, header: Header, name: str) -> Opener:
        """For a container of which the header is known. Raises: Damaged."""
        return Opener(self._libraries, self._epoch_key(header, name), header, self.id, name)

    def _epoch_key(self, header: Header, name: str) -> bytes:
        if header.epoch not in self._epochs:
            raise Damaged(f"{name} is sealed under key {header.epoch}, which the keyring does not hold")
        return self._epochs[header.epoch]

    # -- small objects ------------------------------------------------------------------------------------------------
    def small(self, key: str, kind: int, name: str, bound: int = MAX_CONTAINER, root: bytes | None = None) -> bytes:
        data = read_regular(self.root / key, bound)
        header = Header.parse(data, kind, named_id(name), key)
        epoch_key = self._epoch_key(header, key) if root is None else root
        return Opener(self._libraries, epoch_key, header, self.id, key).open(0, data[HEADER.size :], MAX_SMALL)

    def manifest(self, backup: str) -> dict[str, Any]:
        """Raises: Damaged when no copy can be read, Newer."""
        failure: RescueError | None = None
        for folder in ("manifests", "manifests-b"):
            key = f"{folder}/{backup}"
            try:
                value = parsed(self.small(key, MANIFEST, f"manifests/{backup}"), key)
                manifest = checked_manifest(value, backup)
            except FileNotFoundError:
                self.note(f"{key} is missing; its second copy is used")
                continue
            except Damaged as error:
                if failure is None:
                    self.note(f"{error}; its second copy is used if there is one")
                failure = error
                continue
            return manifest
        raise failure or Damaged(f"manifests/{backup} is not there")

    def backups(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Readable manifests, oldest first, and the names of those that cannot be read."""
        names = set(self.names("manifests", BACKUP_NAME.pattern) + self.names("manifests-b", BACKUP_NAME.pattern))
        found, lost = [], []
        for name in sorted(names):
            try:
                found.append(self.manifest(name))
            except Damaged as error:
                self.note(f"{error}: backup {name} cannot be restored from here")
                lost.append(name)
        return sorted(found, key=lambda one: (one["sequence"], one["backup"])), lost

    def deleted(self) -> set[str]:
        """Backups that their owner deleted although their objects are still here."""
        last: dict[str, tuple[int, str]] = {}
        for key in self.names("marks", BACKUP_NAME.pattern + r"\.[0-9]+-[0-9a-f]{8}")[:MAX_MARKS]:
            try:
                mark = parsed(self.small(f"marks/{key}", MARK, f"marks/{key}"), f"marks/{key}")
                if mark["name"] in ("deleted", "undeleted"):
                    last[mark["backup"]] = max(last.get(mark["backup"], (0, "")), (int(mark["sequence"]), mark["name"]))
            except (RescueError, OSError, KeyError, TypeError, ValueError) as error:
                self.note(f"marks/{key} is left out: {plain(error)}")
        return {backup for backup, (_, name) in last.items() if name == "deleted"}

    # -- packs --------------------------------------------------------------------------------------------------------
    def data_paths(self, pack: bytes) -> list[Path]:
        """Where a data pack lies: its generations, the highest first."""
        name = pack.hex()
        folder = self.root / "packs" / name[:2]
        if name[:2] not in self._generations:
            found: dict[str, list[int]] = {}
            for one in self.names(f"packs/{name[:2]}", r"[0-9a-f]{32}(\.[1-9][0-9]{0,8})?"):
                found.setdefault(one[:32], []).append(int(one[33:] or 1))
            self._generations[name[:2]] = found
        numbers = sorted(self._generations[name[:2]].get(name, []), reverse=True)
        return [folder / (f"{name}.{number}" if number > 1 else name) for number in numbers]

    def data_pages(self, identity: bytes, digest: bytes, number: int, start: int, length: int) -> bytes:
        """Bytes of a chunk of a data pack, from the highest generation that can be read and has their pages.

        Raises: Damaged.
        """
        name, failure = identity.hex(), None
        for path in self.data_paths(identity):
            try:
                pack = self.pack(path, identity, PACK)
                if pack.digest != digest:
                    raise Damaged(f"pack {name} is not the one that the backup was made with")
                if not pack.has(number, start, length):
                    raise Damaged(f"pack {name}, chunk {number}, lacks pages that the backup needs")
                data = self.chunk(pack, number)[start : start + length]
                if len(data) != length:
                    raise Damaged(f"pack {name}, chunk {number}, is shorter than the backup says")
            except Damaged as error:
                failure = failure or error
                continue
            if failure is not None:
                self.note(f"{failure}; an earlier copy of the pack was used")
            return data
        raise failure or Damaged(f"packs/{name[:2]}/{name} cannot be opened: No such file or directory")

    def meta_chunk(self, pack: bytes, number: int) -> bytes:
        """A chunk of a layer, from the first copy that is sound. Raises: Damaged."""
        failure: Damaged | None = None
        name = pack.hex()
        for folder in ("meta", "meta-b"):
            path = self.root / folder / name[:2] / name
            try:
                data = self.chunk(self.pack(path, pack, META), number, MAX_META_CHUNK)
            except Damaged as error:
                failure = failure or error
                continue
            if failure is not None:
                self.note(f"{failure}; its second copy was used")
            return data
        raise failure or Damaged(f"meta/{name[:2]}/{name} is not there")

    def pack(self, path: Path, identity: bytes, kind: int) -> Pack:
        """An opened pack; its directory is read once while it stays among the recent ones. Raises: Damaged."""
        pack = self._packs.get(path)
        if pack is not None:
            self._packs.move_to_end(path)
            return pack
        if path in self._bad_packs:
            raise self._bad_packs[path]
        try:
            pack = self._packs[path] = self._open_pack(path, identity, kind)
        except Damaged as error:
            self._bad_packs[path] = error
            raise
        self._cached_chunks += len(pack.raw)
        while self._cached_chunks > CACHED_DIRECTORY_CHUNKS and len(self._packs) > 1:
            self._cached_chunks -= len(self._packs.popitem(last=False)[1].raw)
        return pack

    def _open_pack(self, path: Path, identity: bytes, kind: int) -> Pack:
        name = str(path.relative_to(self.root))
        file = self._file(path, name)
        size = os.fstat(file.fileno()).st_size
        if not HEADER.size + TAG_BYTES + TRAILER.size <= size <= MAX_CONTAINER:
            raise Damaged(f"{name} has an impossible size")
        header = Header.parse(read_range(file, 0, HEADER.size, name), kind, identity, name)
        length, zero, magic = TRAILER.unpack(read_range(file, size - TRAILER.size, TRAILER.size, name))
        start = size - TRAILER.size - length
        if magic != PACK_END or zero or not TAG_BYTES < length <= MAX_DIRECTORY or start < HEADER.size:
            raise Damaged(f"{name} is damaged or cut short at its end")
        opener = Opener(self._libraries, self._epoch_key(header, name), header, self.id, name)
        row = 28 if header.flags & MASKED else 24
        data = opener.open(DIRECTORY_NUMBER, read_range(file, start, length, name), 8 + row * MAX_PACK_CHUNKS)
        count, page = struct.unpack_from("<II", data) if len(data) >= 8 else (0, 1)
        if (page != 0) != (row == 28) or len(data) != 8 + row * count:
            raise Damaged(f"{name} has a malformed directory")
        beyond = Damaged(f"{name} has a directory beyond the bounds of the format")
        masks = array.array("I", struct.unpack_from(f"<{count}I", data, 8 + 24 * count)) if page else None
        offsets, raw, end = array.array("I", [HEADER.size]), array.array("I"), HEADER.size
        lengths = struct.unpack_from(f"<{2 * count}I", data, 8)
        for number, (stored, size) in enumerate(zip(lengths[:count], lengths[count:])):  # noqa: B905 - Python 3.8
            end += stored
            held = masks is None or masks[number] != 0
            if (stored <= TAG_BYTES if held else stored) or size > MAX_CHUNK or end > start:
                raise beyond
            if masks is not None and (page % 512 or size > CHUNK_PAGES * page or masks[number] >> -(-size // page)):
                raise beyond
            offsets.append(end)
            raw.append(size)
        digest = hashlib.sha256(data[8 + 4 * count : 8 + 24 * count]).digest()[:16]
        return Pack(path, opener, offsets, raw, digest, page, masks)

    def chunk(self, pack: Pack, number: int, bound: int = MAX_CHUNK) -> bytes:
        """The raw bytes of a chunk; pages that this generation does not have are zeros. Raises: Damaged."""
        known = self._chunks.get((pack.path, number))
        if known is not None:
            self._chunks.move_to_end((pack.path, number))
            return known
        name = str(pack.path.relative_to(self.root))
        if number >= len(pack.raw) or pack.raw[number] > bound:
            raise Damaged(f"{name} has no chunk {number} of this kind")
        start, end = pack.offsets[number], pack.offsets[number + 1]
        sealed = read_range(self._file(pack.path, name), start, end - start, name)
        spans = pack.spans(number)
        size = sum(length for _, length in spans)
        data = pack.opener.open(number, sealed, size, exact=True, whole=False)
        if size != pack.raw[number]:
            spread, at = bytearray(pack.raw[number]), 0
            for begin, length in spans:
                spread[begin : begin + length] = data[at : at + length]
                at += length
            data = bytes(spread)
        self._chunks[pack.path, number] = data
        self._chunk_bytes += len(data)
        while self._chunk_bytes > CACHED_CHUNK_BYTES:
            self._chunk_bytes -= len(self._chunks.popitem(last=False)[1])
        return data

    def _file(self, path: Path, name: str) -> io.RawIOBase:
        file = self._files.get(path)
        if file is not None:
            self._files.move_to_end(path)
            return file
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            descriptor = os.open(str(path), flags)
        except OSError as error:
            raise Damaged(f"{name} cannot be opened: {error.strerror}") from None
        file = os.fdopen(descriptor, "rb", buffering=0)
        self._files[path] = file
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged(f"{name} is not a file")
        while len(self._files) > OPEN_PACKS:
            self._files.popitem(last=False)[1].close()
        return file

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def checked_manifest(value: Any, backup: str) -> dict[str, Any]:
    """A manifest whose fields that a restore uses have been checked. Raises: Damaged, Newer."""
    try:
        if int(value["format"]) > FORMAT:
            raise Newer(f"backup {backup} has a newer format", "Use the rescue.py of a newer release of DataManager.")
        layers, page = value["layers"], value["page_size"]
        sound = value["backup"] == backup and 1 <= len(layers) <= MAX_LAYERS and page in [1 << n for n in range(9, 16)]
        for layer in layers:
            sizes = [layer[name] for name in ("blocks", "table", "index")]
            spans = layer["spans"]
            sound = sound and all(type(one) is int and one >= 0 for one in sizes)
            for pack, first, count in spans:
                sound = sound and re.fullmatch("[0-9a-f]{32}", pack) is not None
                sound = sound and first >= 0 and count >= 1 and first + count <= MAX_PACK_CHUNKS
            sound = sound and sum(count for _, _, count in spans) == sum(sizes)
        for one in value["tablespaces"]:
            sound = sound and type(one["oid"]) is int and 0 < one["oid"] < 1 << 32
        sound = sound and all(type(one) is int and one >= 0 for one in value["volumes"].values())
        for one in value.get("outside") or []:
            sound = sound and type(one["path"]) is str and type(one["mode"]) is int
            sound = sound and (one["content"] is None or one["content"].encode("latin-1") is not None)
        if value.get("method") == "native":
            numbers = [int(value[name]) for name in ("major", "system_identifier", "timeline")]
            places = [re.fullmatch("[0-9A-F]+/[0-9A-F]+", value[name]) for name in ("start_lsn", "stop_lsn")]
            sound = sound and min(numbers) >= 0 and None not in places
        sound = sound and type(value["sequence"]) is int and type(value["server"]) is dict
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise Damaged(f"manifests/{backup} is malformed")
    return dict(value)


# -- layers -----------------------------------------------------------------------------------------------------------


class Rows:
    """Rows of one file: first page, pages, pack, position; sorted and disjoint. 16 bytes a row."""

    def __init__(self) -> None:
        self.first, self.pages = array.array("I"), array.array("I")
        self.pack, self.position = array.array("I"), array.array("I")

    def __len__(self) -> int:
        return len(self.first)

    def add(self, first: int, pages: int, pack: int, position: int) -> None:
        self.first.append(first)
        self.pages.append(pages)
        self.pack.append(pack)
        self.position.append(position)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.first, self.pages, self.pack, self.position)  # noqa: B905 - Python 3.8 has no strict


class Entry(NamedTuple):
    """A file as a layer or a backup has it."""

    path: bytes
    kind: int
    flags: int
    mode: int
    size: int
    kept: int
    crc32c: int
    rows: Rows


def check_path(path: bytes) -> None:
    """Refuse a path that could lead out of the target. Raises: Damaged."""
    parts = path.split(b"/")
    bad = len(path) > MAX_PATH or b"\0" in path or any(part in (b"", b".", b"..") for part in parts)
    if os.name == "nt":
        reserved = rb"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?"
        bad = bad or any(char in path for char in b':\\<>"|?*') or any(byte < 32 for byte in path)
        bad = bad or any(part[-1:] in (b".", b" ") or re.fullmatch(reserved, part) for part in parts)
    if bad:
        raise Damaged(f"the backup holds the path {shown(path[:80])!r}, which would not be safe to write here; refused")


def decode_block(data: bytes, packs: int, shift: int) -> tuple[list[Entry], bool]:
    """The files of a block, and whether the first began in the block before.

    Args: packs - entries of the layer's pack table; shift - what is added to the rows' pack numbers.
    Raises: Damaged.
    """
    malformed = Damaged("a layer of the backup is malformed")
    if len(data) < BLOCK.size:
        raise malformed
    files, rows, path_bytes, flags = BLOCK.unpack_from(data)
    if len(data) != BLOCK.size + 26 * files + path_bytes + 16 * rows or flags & ~1:
        raise malformed
    place = BLOCK.size

    def column(letter: str, count: int) -> tuple[int, ...]:
        nonlocal place
        values = struct.unpack_from(f"<{count}{letter}", data, place)
        place += struct.calcsize(f"<{count}{letter}")
        return values

    lengths = column("H", files)
    if sum(lengths) != path_bytes:
        raise malformed
    paths_at = place
    place += path_bytes
    kinds, marks, modes, sizes = column("B", files), column("B", files), column("H", files), column("Q", files)
    kept, crcs, counts = column("I", files), column("I", files), column("I", files)
    if sum(counts) != rows:
        raise malformed
    firsts, pages, numbers, positions = (column("I", rows) for _ in range(4))
    entries, row = [], 0
    for file in range(files):
        path = data[paths_at : paths_at + lengths[file]]
        paths_at += lengths[file]
        check_path(path)
        own, first_end, position_end = Rows(), 0, 0
        for number in range(row, row + counts[file]):
            first = (first_end + firsts[number]) & 0xFFFFFFFF
            position = (position_end + positions[number]) & 0xFFFFFFFF
            pack, end = numbers[number], first + pages[number]
            if first < first_end or not pages[number] or end > 0xFFFFFFFF or (pack >= packs and pack != ZERO_PACK):
                raise malformed
            own.add(first, pages[number], pack if pack == ZERO_PACK else pack + shift, position)
            first_end, position_end = end, position + pages[number]
        row += counts[file]
        if kinds[file] > 1 or marks[file] > MAX_FLAGS:
            raise malformed
        entries.append(
            Entry(path, kinds[file], marks[file], modes[file], sizes[file], kept[file], crcs[file], own),
        )
    return entries, bool(flags & 1)


class Layer:
    """One layer of a backup. ``packs``: (id, digest) of each data pack that it names."""

    def __init__(self, repository: Repository, reference: dict[str, Any]) -> None:
        self._repository = repository
        self._blocks = reference["blocks"]
        self._spans = [(bytes.fromhex(pack), first, count) for pack, first, count in reference["spans"]]
        self.packs: list[tuple[bytes, bytes]] = []
        for number in range(self._blocks, self._blocks + reference["table"]):
            data = self._chunk(number)
            if len(data) % 32:
                raise Damaged("a layer of the backup has a malformed pack table")
            self.packs += [(data[at : at + 16], data[at + 16 : at + 32]) for at in range(0, len(data), 32)]

    def _chunk(self, number: int) -> bytes:
        for pack, first, count in self._spans:
            if number < count:
                return self._repository.meta_chunk(pack, first + number)
            number -= count
        raise Damaged("a layer of the backup ends early")

    def entries(self, shift: int) -> Iterator[Entry]:
        """Every file in path order; holds one block. Raises: Damaged."""
        pending: Entry | None = None
        for number in range(self._blocks):
            entries, continues = decode_block(self._chunk(number), len(self.packs), shift)
            for place, entry in enumerate(entries):
                if pending is not None and entry.path <= pending.path:
                    if entry.path != pending.path or place or not continues:
                        raise Damaged("a layer of the backup has its files out of order")
                    for row in entry.rows:
                        if len(pending.rows) and row[0] < pending.rows.first[-1] + pending.rows.pages[-1]:
                            raise Damaged("a layer of the backup has overlapping rows")
                        pending.rows.add(*row)
                    continue
                if continues and not place:
                    raise Damaged("a layer of the backup lacks a block")
                if pending is not None:
                    yield pending
                pending = entry
        if pending is not None:
            yield pending


def paint(base: Rows, kept: int, over: Rows) -> Rows:
    """``base`` below page ``kept``, with ``over`` painted on it."""
    out, next_over = Rows(), 0
    overs = list(over)
    for first, pages, pack, position in base:
        end = min(first + pages, kept)
        while first < end:
            if next_over == len(overs) or overs[next_over][0] >= end:
                out.add(first, end - first, pack, position)
                break
            over_first, over_pages = overs[next_over][:2]
            over_end = over_first + over_pages
            if over_end > first:
                if first < over_first:
                    out.add(first, over_first - first, pack, position)
                    position, first = position + over_first - first, over_first
                if over_end >= end:
                    break
                position, first = position + over_end - first, over_end
            out.add(*overs[next_over])
            next_over += 1
    for row in overs[next_over:]:
        out.add(*row)
    return out


def compose(group: list[Entry]) -> Entry | None:
    """One file from its entries, oldest to newest; None when it is gone."""
    rows = Rows()
    for entry in group:
        rows = Rows() if entry.flags & GONE else paint(rows, entry.kept, entry.rows)
    newest = group[-1]
    return None if newest.flags & GONE else newest._replace(rows=rows)


class Backup:
    """The files of one backup."""

    def __init__(self, repository: Repository, manifest: dict[str, Any]) -> None:
        self.repository = repository
        self.manifest = manifest
        self.page_size: int = manifest["page_size"]
        self._layers = [Layer(repository, one) for one in reversed(manifest["layers"])]
        self._packs = [pack for layer in self._layers for pack in layer.packs]

    def missing_packs(self) -> list[str]:
        return [pack.hex() for pack, _ in self._packs if not self.repository.data_paths(pack)]

    def files(self) -> Iterator[Entry]:
        """Every file, in path order. Raises: Damaged."""
        shift, streams = 0, []
        for number, layer in enumerate(self._layers):
            streams.append(_numbered(layer.entries(shift), number))
            shift += len(layer.packs)
        group: list[Entry] = []
        for _, _, entry in heapq.merge(*streams, key=lambda one: one[:2]):
            if group and group[0].path != entry.path:
                yield from self._composed(group)
                group = []
            group.append(entry)
        if group:
            yield from self._composed(group)

    def _composed(self, group: list[Entry]) -> Iterator[Entry]:
        entry = compose(group)
        if entry is not None:
            if entry.size > self.page_size << 32:
                raise Damaged(f"{shown(entry.path)} has an impossible size")
            yield entry

    def pieces(self, entry: Entry) -> Iterator[tuple[int, int, bytes | Damaged]]:
        """Offset, length and bytes (or what is wrong with them) of all that is not zeros, in order."""
        pages_of_file = -(-entry.size // self.page_size)
        for first, pages, pack, position in entry.rows:
            pages = min(pages, pages_of_file - first)
            while pages > 0 and pack != ZERO_PACK:
                chunk, start = divmod(position, CHUNK_PAGES)
                count = min(pages, CHUNK_PAGES - start)
                offset = first * self.page_size
                length = min(count * self.page_size, entry.size - offset)
                yield offset, length, self._piece(pack, chunk, start * self.page_size, length)
                first, pages, position = first + count, pages - count, position + count

    def _piece(self, number: int, chunk: int, start: int, length: int) -> bytes | Damaged:
        identity, digest = self._packs[number]
        try:
            return self.repository.data_pages(identity, digest, chunk, start, length)
        except Damaged as error:
            return error


# -- CRC-32C (only with --check-crc) ----------------------------------------------------------------------------------


class Crc32c:
    """CRC-32C, eight bytes at a time; zeros are skipped by algebra. Source: RFC 3720, appendix B.4."""

    _tables: list[list[int]] = []  # noqa: RUF012 - filled at first use

    def __init__(self) -> None:
        if not self._tables:
            first = list(range(256))
            for _ in range(8):
                first = [one >> 1 ^ (0x82F63B78 if one & 1 else 0) for one in first]
            self._tables.append(first)
            for _ in range(7):
                self._tables.append([first[one & 255] ^ one >> 8 for one in self._tables[-1]])
        self._value = 0xFFFFFFFF
        self._length = 0

    def to(self, offset: int) -> None:
        """Zeros up to ``offset``."""
        size, square = offset - self._length, 1 << 23  # x^8; bit 31 stands for x^0
        self._length = offset
        while size:
            if size & 1:
                self._value = _times(square, self._value)
            square, size = _times(square, square), size >> 1

    def add(self, data: bytes) -> None:
        t0, t1, t2, t3, t4, t5, t6, t7 = self._tables
        value, whole = self._value, len(data) & ~7
        for one in struct.unpack(f"<{whole // 8}Q", data[:whole]):
            one ^= value
            value = (
                t7[one & 255]
                ^ t6[one >> 8 & 255]
                ^ t5[one >> 16 & 255]
                ^ t4[one >> 24 & 255]
                ^ t3[one >> 32 & 255]
                ^ t2[one >> 40 & 255]
                ^ t1[one >> 48 & 255]
                ^ t0[one >> 56]
            )
        for byte in data[whole:]:
            value = t0[(value ^ byte) & 255] ^ value >> 8
        self._value, self._length = value, self._length + len(data)

    def result(self) -> int:
        return self._value ^ 0xFFFFFFFF


def _numbered(entries: Iterator[Entry], number: int) -> Iterator[tuple[bytes, int, Entry]]:
    return ((entry.path, number, entry) for entry in entries)


def _times(one: int, other: int) -> int:
    """The product of two polynomials modulo Castagnoli's, both reflected."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0x82F63B78 if other & 1 else 0)
    return product


# -- checking and restoring -------------------------------------------------------------------------------------------


class Progress:
    """A line now and then."""

    def __init__(self, verb: str, total: int) -> None:
        self._verb, self._total, self._done = verb, max(total, 1), 0
        self._next = time.monotonic() + 2

    def add(self, size: int) -> None:
        self._done += size
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + (2 if sys.stdout.isatty() else 15)
            say(f"  {self._verb} {size_words(self._done)} ({min(100 * self._done // self._total, 100)} %)")


class Damages:
    """Files with parts that cannot be read, for the list at the end."""

    def __init__(self) -> None:
        self.files: OrderedDict[bytes, tuple[int, str]] = OrderedDict()

    def add(self, path: bytes, length: int, why: object) -> None:
        size, first = self.files.get(path, (0, plain(why)))
        self.files[path] = (size + length, first)

    def tell(self) -> None:
        for number, (path, (size, why)) in enumerate(self.files.items()):
            if number == 50:
                say(f"  and {len(self.files) - 50} more files")
                break
            say(f"  {shown(path)}: {size_words(size)}; {why}")


def size_words(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def check_backup(backup: Backup, check_crc: bool) -> Damages:
    """Read and authenticate every chunk that the backup needs; with ``check_crc`` every file's checksum too."""
    damages = Damages()
    progress = Progress("checked", sum(backup.manifest["volumes"].values()))
    for entry in backup.files():
        crc = Crc32c() if check_crc and entry.kind == 0 and not entry.flags & COMPOSED else None
        for offset, length, piece in backup.pieces(entry):
            if isinstance(piece, Damaged):
                damages.add(entry.path, length, piece)
                crc = None
            elif crc is not None:
                crc.to(offset)
                crc.add(piece)
            progress.add(length)
        check_result(crc, entry, damages)
    return damages


def check_result(crc: Crc32c | None, entry: Entry, damages: Damages) -> None:
    if crc is not None:
        crc.to(entry.size)
        if crc.result() != entry.crc32c:
            damages.add(entry.path, entry.size, "its CRC-32C is not the one that the server sent")


class Plan(NamedTuple):
    """Where everything goes. ``links``: directory of each tablespace outside the data directory, by oid.

    ``outside``: new places of files that lay outside the data directory, with role, mode and content of each.
    """

    target: Path
    links: dict[int, Path]
    files: int
    has_settings: bool
    outside: list[tuple[Path, str, int, bytes]]


def plan_restore(backup: Backup, options: argparse.Namespace) -> Plan:
    """Decide and check all that can be known before the first byte is written. Raises: RescueError."""
    target = Path(os.path.abspath(options.target))  # noqa: PTH100 - links in it stay as the owner wrote them
    links = tablespace_places(backup.manifest["tablespaces"], target, options.tablespace)
    outside = outside_files(backup.manifest, outside_folder(target))
    places = [target, *links.values(), *([outside_folder(target)] if outside else [])]
    for number, place in enumerate(places):
        require_empty(place)
        for other in places[number + 1 :]:
            if place == other or place in other.parents or other in place.parents:
                raise UnfitTarget(
                    f"{place} and {other} lie in each other", "Give every tablespace a folder of its own."
                )
    missing = backup.missing_packs()
    if missing and not options.salvage:
        raise Damaged(
            f"{len(missing)} packs of this backup are not here, {missing[0]} among them",
            "Try another backup or another drive; restore --salvage writes what can be read.",
        )
    files, total, settings = 0, 0, False
    for entry in backup.files():
        files, total = files + 1, total + entry.size
        settings = settings or entry.path == b"postgresql.conf"
    require_room(backup.manifest["volumes"], target, links, total, options.ignore_space)
    return Plan(target, links, files, settings, outside)


def outside_folder(target: Path) -> Path:
    """What lay outside the data directory goes beside it: where it belongs, another server may live with it."""
    return target.parent / f"{target.name}.outside"


def outside_files(manifest: dict[str, Any], folder: Path) -> list[tuple[Path, str, int, bytes]]:
    """Settings that lay outside the data directory (/etc/postgresql, for example), each at its old path below a folder.

    Raises: Damaged, for a path that would lead out of it.
    """
    found = []
    for one in manifest.get("outside") or []:
        if one["content"] is not None:
            path = one["path"]
            if re.match(r"[A-Za-z]:|\\", path):
                path = path.replace("\\", "/").replace(":", "", 1)
            check_path(os.fsencode(path.strip("/")))
            place = folder.joinpath(*path.strip("/").split("/"))
            found.append((place, plain(one.get("role")), one["mode"] & 0o777, one["content"].encode("latin-1")))
    return found


def tablespace_places(tablespaces: list[dict[str, Any]], target: Path, given: list[str]) -> dict[int, Path]:
    wanted: dict[int, Path] = {}
    for text in given:
        oid, equals, folder = text.partition("=")
        if not equals or not oid.isdigit() or not folder:
            raise Usage(f"--tablespace {text}: write OID=FOLDER")
        wanted[int(oid)] = Path(os.path.abspath(folder))  # noqa: PTH100 - as above
    links = {}
    for one in tablespaces:
        location = str(one.get("location", ""))
        inside = not (location.startswith("/") or re.match(r"[A-Za-z]:|\\\\", location))
        if one["oid"] in wanted:
            links[one["oid"]] = wanted.pop(one["oid"])
        elif not inside:
            links[one["oid"]] = target.parent / (target.name + "-tablespaces") / str(one["oid"])
    if wanted:
        raise Usage(f"this backup has no tablespace {next(iter(wanted))}")
    return links


def require_empty(place: Path) -> None:
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise UnfitTarget(f"{place} is a link or a file", "Give a folder that does not exist yet or is empty.")
    if place.exists() and any(one.name != "lost+found" for one in place.iterdir()):
        raise UnfitTarget(f"{place} is not empty", "Give a folder that does not exist yet or is empty.")


def require_room(volumes: dict[str, int], target: Path, links: dict[int, Path], total: int, ignore: bool) -> None:
    """Raises: TooSmall."""
    needs: dict[int, tuple[int, Path]] = {}
    sizes = volumes or {"base": total}
    for name, size in sizes.items():
        place = links.get(int(name), target) if name.isdigit() else target
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        needs[device] = (needs.get(device, (0, place))[0] + size, place)
    for need, place in needs.values():
        free = shutil.disk_usage(str(place)).free
        if need > free and not ignore:
            raise TooSmall(
                f"the volume of {place} has {size_words(free)} free, the backup needs up to {size_words(need)}",
                "Restore to a bigger volume, or make room.",
            )


class Writer:
    """Writes the files of a backup below a plan's folders. Follows no link: every folder and file is its own work."""

    def __init__(self, plan: Plan, owner: tuple[int, int] | None) -> None:
        self._plan = plan
        self._owner = owner
        self._made: set[str] = set()
        self.sums: list[tuple[bytes, int, str]] | None = None  # path, size, SHA-256 of each file, where wanted
        for folder in (plan.target, *plan.links.values()):
            self._need(folder.parent, 0o755)
            folder.mkdir(mode=0o700, exist_ok=True)
            self._settle(folder, 0o700)

    def place(self, path: bytes) -> Path:
        parts = path.split(b"/", 2)
        if parts[0] == b"pg_tblspc" and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) in self._plan.links:
            root, rest = self._plan.links[int(parts[1])], parts[2:]
        else:
            root, rest = self._plan.target, [path]
        return root.joinpath(*(os.fsdecode(part) for one in rest for part in one.split(b"/")))

    def folder(self, entry: Entry) -> None:
        path = self.place(entry.path)
        self._need(path.parent, 0o700)
        path.mkdir(mode=0o700, exist_ok=True)
        self._settle(path, entry.mode | 0o700)

    def _need(self, folder: Path, mode: int) -> None:
        """Make a folder that no entry of the backup made before, with those around it."""
        if str(folder) in self._made:
            return
        if not folder.exists():
            self._need(folder.parent, mode)
            folder.mkdir(mode)
            self._settle(folder, mode)
        self._made.add(str(folder))

    def _settle(self, path: Path, mode: int) -> None:
        if os.name != "nt":
            path.chmod(mode)
        if self._owner is not None:
            shutil.chown(str(path), *self._owner)

    def file(self, entry: Entry, path: bytes, pieces: Iterator[tuple[int, bytes]]) -> None:
        """Make a new file of the entry's size; what no piece covers is zeros and takes no room. Raises: OSError."""
        hashed = None if self.sums is None or entry.path.startswith(b"pg_wal/") else Sum()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        place = self.place(path)
        self._need(place.parent, 0o700)
        descriptor = os.open(str(place), flags, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.truncate(entry.size)
            for offset, data in pieces:
                if hashed is not None:
                    hashed.add(offset, data)
                file.seek(offset)
                view = memoryview(data)
                while len(view):
                    view = view[file.write(view) :]
            if os.name != "nt":
                os.fchmod(descriptor, entry.mode)
            if self._owner is not None:
                os.chown(descriptor, *self._owner)
            os.fsync(descriptor)
        if hashed is not None and self.sums is not None:
            hashed.add(entry.size, b"")
            self.sums.append((entry.path, entry.size, hashed.sha256.hexdigest()))

    def loose(self, path: Path, mode: int, data: bytes) -> None:
        """A file that is no part of the data directory, or one that we make ourselves. Raises: OSError."""
        self._need(path.parent, 0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(str(path), flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._settle(path, mode | 0o600)

    def finish(self) -> None:
        """Links of tablespaces, every folder synced, the control file under its own name at last."""
        for oid, folder in self._plan.links.items():
            link = self._plan.target / "pg_tblspc" / str(oid)
            self._need(link.parent, 0o700)
            if os.name == "nt":
                importlib.import_module("_winapi").CreateJunction(str(folder), str(link))
            else:
                link.symlink_to(folder, target_is_directory=True)
        others = [outside_folder(self._plan.target)] if self._plan.outside else []
        for root in (self._plan.target, *self._plan.links.values(), *others):
            for folder_name, _, _ in os.walk(str(root), followlinks=False):
                sync_folder(folder_name)
            sync_folder(str(root.parent))
        unfinished = self.place(UNFINISHED)
        if unfinished.exists():
            unfinished.rename(self.place(CONTROL_FILE))
            sync_folder(str(unfinished.parent))


class Sum:
    """SHA-256 of a file from its pieces in order; what lies between them is zeros."""

    _ZEROS = bytes(MIB)

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._end = 0

    def add(self, offset: int, data: bytes) -> None:
        while self._end < offset:
            size = min(offset - self._end, MIB)
            self.sha256.update(self._ZEROS[:size])
            self._end += size
        self.sha256.update(data)
        self._end += len(data)


def backup_manifest(manifest: dict[str, Any], sums: list[tuple[bytes, int, str]]) -> bytes:
    """What pg_verifybackup wants of a backup put together from increments; the server wrote one for the others.

    Source: PostgreSQL documentation, chapter 70 (Backup Manifest Format).
    """
    lines = []
    for path, size, digest in sums:
        try:
            name = {"Path": path.decode()}
        except UnicodeDecodeError:
            name = {"Encoded-Path": path.hex()}
        line = {**name, "Size": size, "Checksum-Algorithm": "SHA256", "Checksum": digest}
        lines.append(json.dumps(line, ensure_ascii=False))
    newer = int(manifest["major"]) >= 17
    head: dict[str, Any] = {"PostgreSQL-Backup-Manifest-Version": 2 if newer else 1}
    if newer:
        head["System-Identifier"] = int(manifest["system_identifier"])
    start, stop = manifest["start_lsn"], manifest["stop_lsn"]
    needed = {"Timeline": int(manifest["timeline"]), "Start-LSN": start, "End-LSN": stop}
    text = (
        json.dumps(head)[:-1]
        + ',\n"Files": [\n'
        + ",\n".join(lines)
        + f'\n],\n"WAL-Ranges": [\n{json.dumps(needed)}\n],\n'
    ).encode()
    return text + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(text).hexdigest().encode()


def sync_folder(folder: str) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # FAT and some network file systems cannot
    finally:
        os.close(descriptor)


def restore_backup(backup: Backup, plan: Plan, options: argparse.Namespace, note: Callable[[str], None]) -> Damages:
    """Write everything, the control file last. Raises: Damaged (without --salvage), OSError."""
    damages, writer = Damages(), Writer(plan, owner_of(options.owner))
    progress = Progress("restored", sum(backup.manifest["volumes"].values()))

    def pieces(entry: Entry) -> Iterator[tuple[int, bytes]]:
        crc = Crc32c() if options.check_crc and not entry.flags & COMPOSED else None
        for offset, length, piece in backup.pieces(entry):
            if isinstance(piece, Damaged):
                if not options.salvage:
                    raise Damaged(
                        f"{shown(entry.path)} cannot be restored: {piece}",
                        "Try another backup or another drive. `check` lists all that is damaged; `restore --salvage` "
                        "writes what can be read, with zeros for the rest.",
                    )
                damages.add(entry.path, length, piece)
                crc = None
            else:
                if crc is not None:
                    crc.to(offset)
                    crc.add(piece)
                yield offset, piece
            progress.add(length)
        check_result(crc, entry, damages)

    control: Entry | None = None
    native = backup.manifest.get("method") == "native"
    writer.sums = [] if native else None
    for entry in backup.files():
        if native and entry.path == b"backup_manifest":
            continue  # it would be that of an older backup
        if entry.path == b"tablespace_map":
            note("the backup holds a file tablespace_map; left out, for it would point PostgreSQL at the old folders")
        elif entry.kind == 1:
            writer.folder(entry)
        elif entry.path == CONTROL_FILE:
            control = entry
        else:
            writer.file(entry, entry.path, pieces(entry))
    if damages.files and not options.salvage:
        return damages  # without the control file PostgreSQL refuses to start what is there
    if control is not None:
        writer.file(control, UNFINISHED, pieces(control))
    if writer.sums is not None and not damages.files:
        writer.loose(plan.target / "backup_manifest", 0o600, backup_manifest(backup.manifest, writer.sums))
    for place, _, mode, data in plan.outside:
        writer.loose(place, mode, data)
    writer.finish()
    return damages


def owner_of(name: str | None) -> tuple[int, int] | None:
    """Raises: Usage."""
    if not name:
        return None
    if os.name == "nt":
        raise Usage("--owner is not for Windows")
    try:
        account = importlib.import_module("pwd").getpwnam(name)
    except KeyError:
        raise Usage(f"--owner {name}: there is no such account here") from None
    return int(account.pw_uid), int(account.pw_gid)


# -- the archive of WAL -----------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One timeline as one server wrote it; ``history`` is the server's file about where it comes from."""

    folder: str
    timeline: int
    segment: int
    history: bytes
    created: str


class Stretch(NamedTuple):
    """An object of a line: which bytes of the WAL it holds."""

    start: int
    end: int
    key: str


class Archive:
    """The WAL of one server in a repository."""

    def __init__(self, repository: Repository, system: int) -> None:
        self._repository = repository
        self._folder = f"wal/{system:016x}"
        self._system = system

    def lines(self) -> list[Line]:
        """The newest line of each timeline."""
        found: dict[int, Line] = {}
        names = self._repository.names(f"{self._folder}/lines", f"{LINE_NAME}-[ab]")
        for name in sorted({one[:-2] for one in names}):
            line = self._line(name)
            if line is not None and (line.timeline not in found or found[line.timeline].created <= line.created):
                found[line.timeline] = line
        return [found[timeline] for timeline in sorted(found)]

    def _line(self, name: str) -> Line | None:
        logical = f"{self._folder}/lines/{name}"
        for copy in ("-a", "-b"):
            try:
                value = parsed(self._repository.small(logical + copy, LINE, logical), logical)
                line = Line(
                    f"{self._folder}/{name}",
                    int(value["timeline"]),
                    int(value["segment_size"]),
                    str(value["history"]).encode("latin-1"),
                    str(value["created"]),
                )
                right = int(value["system"]) == self._system and line.timeline == int(name[:8], 16)
                if right and MIB <= line.segment <= MAX_SEGMENT and not line.segment & (line.segment - 1):
                    return line
                raise Damaged(f"{logical} is malformed")
            except (Damaged, FileNotFoundError, KeyError, TypeError, ValueError) as error:
                self._repository.note(f"{logical}{copy} cannot be used: {plain(error)}")
        return None

    def stretches(self, line: Line) -> list[Stretch]:
        """Every object of a line, by start."""
        found = []
        for log in self._repository.names(line.folder, "[0-9a-f]{8}"):
            for name in self._repository.names(f"{line.folder}/{log}", STRETCH_NAME.pattern):
                start, length = (int(one, 16) for one in name.split("-"))
                if 0 < length <= MAX_STRETCH and start + length <= LOG:
                    begin = (int(log, 16) << 32) + start
                    found.append(Stretch(begin, begin + length, f"{line.folder}/{log}/{name}"))
        return sorted(found)

    def segment(self, stretches: Sequence[Stretch], start: int, size: int) -> tuple[bytes, str]:
        """What is there of a segment from its start on, and why no more of it; empty words when it is whole."""
        data = bytearray()
        while len(data) < size:
            at = start + len(data)
            holding = sorted((one for one in stretches if one.start <= at < one.end), key=lambda one: -one.end)
            why = "" if holding else "nothing more is here"
            for one in holding:
                try:
                    data += self._read(one, at, min(one.end, start + size))
                    break
                except (Damaged, FileNotFoundError) as error:
                    why = plain(error)
            if start + len(data) == at:
                return bytes(data), why
        return bytes(data), ""

    def _read(self, stretch: Stretch, start: int, end: int) -> bytes:
        opener, chunks = self._open(stretch)
        parts = []
        begin = stretch.start
        for number, (offset, stored, raw) in enumerate(chunks):
            if begin < end and begin + raw > start:
                sealed = read_regular(self._repository.root / stretch.key, MAX_CONTAINER, offset, stored)
                data = opener.open(number, sealed, raw, exact=True, whole=False)
                parts.append(data[max(0, start - begin) : end - begin])
            begin += raw
        return b"".join(parts)

    def _open(self, stretch: Stretch) -> tuple[Opener, list[tuple[int, int, int]]]:
        """A stretch's chunks: offset and bytes of each in the file, and its plain bytes. Raises: Damaged."""
        key = stretch.key
        data = read_regular(self._repository.root / key, MAX_CONTAINER)
        header = Header.parse(data, WAL, named_id(key), key)
        opener = self._repository.opener(header, key)
        length, zero, magic = TRAILER.unpack(data[-TRAILER.size :])
        limit = len(data) - TRAILER.size - length
        if magic != PACK_END or zero or not TAG_BYTES < length <= MAX_DIRECTORY or limit < HEADER.size:
            raise Damaged(f"{key} is damaged or cut short at its end")
        value = parsed(opener.open(DIRECTORY_NUMBER, data[limit : limit + length], MAX_DIRECTORY), key)
        try:
            stored, raw = [int(one) for one in value["stored"]], [int(one) for one in value["raw"]]
            high, low = str(value["start"]).split("/")
            begin = (int(high, 16) << 32) + int(low, 16)
        except (KeyError, TypeError, ValueError):
            raise Damaged(f"{key} has a malformed directory") from None
        fits = len(raw) == len(stored) and all(0 < one <= MAX_CHUNK for one in raw)
        if not fits or begin != stretch.start or sum(raw) != stretch.end - begin or sum(stored) + HEADER.size != limit:
            raise Damaged(f"{key} has a directory that does not fit it")
        chunks, offset = [], HEADER.size
        for size, plain_size in zip(stored, raw):  # noqa: B905 - Python 3.8
            chunks.append((offset, size, plain_size))
            offset += size
        return opener, chunks


def segment_name(timeline: int, start: int, size: int) -> str:
    per_log = LOG // size
    return f"{timeline:08X}{start // size // per_log:08X}{start // size % per_log:08X}"


def write_wal(archive: Archive, since: int, folder: Path) -> tuple[int, list[str]]:
    """Write histories, and segments from the one that holds ``since`` on; returns how many, and what is missing.

    The last segment of a timeline is filled up with zeros: the server takes files of the full size alone.
    """
    written, missing = 0, []
    for line in archive.lines():
        if line.history:
            (folder / f"{line.timeline:08X}.history").write_bytes(line.history)
        stretches = [one for one in archive.stretches(line) if one.end > since - since % line.segment]
        places = sorted({one.start - one.start % line.segment for one in stretches})
        for number, start in enumerate(places):
            if number and start != places[number - 1] + line.segment:
                before = segment_name(line.timeline, places[number - 1], line.segment)
                missing.append(f"between {before} and {segment_name(line.timeline, start, line.segment)}")
            name = segment_name(line.timeline, start, line.segment)
            near = [one for one in stretches if one.start < start + line.segment and one.end > start]
            data, why = archive.segment(near, start, line.segment)
            if why and number + 1 < len(places):
                missing.append(f"{name}: {why}")
                continue
            if data:
                (folder / name).write_bytes(data + bytes(line.segment - len(data)))
                written += 1
    return written, missing


# -- words for people -------------------------------------------------------------------------------------------------


def server_facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What the server that opens the restored folder needs, as (name, words); nothing where it was not recorded."""
    server = manifest["server"]
    found = {one for one in server.get("extensions") or [] if isinstance(one, str)}
    for database in server.get("databases") or []:
        found |= {plain(one["name"]) for one in database.get("extensions") or []}
    facts = [
        ("operating system", server.get("operating_system") or server.get("os")),
        ("architecture", server.get("architecture") or server.get("arch")),
        ("extensions", ", ".join(sorted(plain(one) for one in found))),
        ("libraries loaded at start", server.get("shared_preload_libraries")),
    ]
    return [(name, plain(value)) for name, value in facts if value]


def least_settings(manifest: dict[str, Any]) -> str:
    """Settings that a server replaying this backup's log needs at least."""
    names = ("connections", "worker_processes", "wal_senders", "prepared_transactions", "locks_per_transaction")
    values = [(f"max_{name}", manifest["server"].get(f"max_{name}")) for name in names]
    return ", ".join(f"{name} = {value}" for name, value in values if isinstance(value, int))


def describe(manifest: dict[str, Any]) -> str:
    size = size_words(sum(manifest["volumes"].values()))
    label = f' "{plain(manifest.get("label"))}"' if manifest.get("label") else ""
    cluster, version = plain(manifest.get("cluster")), plain(manifest.get("version"))
    return f"{manifest['backup']}  {cluster}{label}, PostgreSQL {version}, {size}, made {plain(manifest.get('ended'))}"


def next_steps(manifest: dict[str, Any], plan: Plan, owner: str | None) -> list[str]:
    major = plain(manifest.get("major"))
    target = f'"{plan.target}"'
    needs = [f"PostgreSQL {major} ({plain(manifest.get('version'))} or a newer {major}.x, no other major version)"]
    needs += [f"{name}: {words}" for name, words in server_facts(manifest)]
    steps = ["The server that opens this folder needs " + "; ".join(needs) + "."]
    if os.name != "nt" and not owner:
        folders = " ".join(f'"{one}"' for one in (plan.target, *plan.links.values()))
        steps.append(f"Give the files to the account that runs PostgreSQL:  chown -R postgres: {folders}")
    own = {role: place for place, role, _, _ in plan.outside if role in ("config_file", "hba_file", "ident_file")}
    if plan.outside:
        steps.append(
            f'The settings that lay outside the data directory are in "{outside_folder(plan.target)}", below their old '
            "paths. Read them before you use them: they name paths of the old machine."
        )
    if not plan.has_settings and "config_file" not in own:
        steps.append(
            "This backup holds no postgresql.conf (Debian and Ubuntu keep it in /etc/postgresql). Copy your own "
            f"postgresql.conf and pg_hba.conf into {target}; without them, make an empty postgresql.conf and a "
            "pg_hba.conf with the line:  local all all peer"
        )
        least = least_settings(manifest)
        steps += [f"In that postgresql.conf have at least: {least}"] if least else []
    steps += [
        "If the old server still runs anywhere, keep the two apart: same settings, same scheduled work, same archive.",
        f"Start it as that account:  pg_ctl -D {target} -l {target}/rescue.log{settings_words(own, plan)} start",
        "Log in and look at your newest records. Then make a new backup of this server.",
    ]
    for oid, folder in plan.links.items():
        steps.insert(1, f"Tablespace {oid} now lies in {folder}; do not move it, the data directory links there.")
    return steps


def settings_words(own: dict[str, Path], plan: Plan) -> str:
    """What makes pg_ctl start the server with its own settings, from where they were put."""
    if "config_file" not in own:
        return ""
    words = {"data_directory": plan.target, **own}
    return ' -o "' + " ".join(f"-c '{name}={place}'" for name, place in sorted(words.items())) + '"'


def tell_list(repository: Repository) -> None:
    backups, lost = repository.backups()
    deleted = repository.deleted()
    for one in backups:
        state = "  (deleted by its owner)" if one["backup"] in deleted else ""
        if one.get("checksum_failures"):
            state += "  (the server itself had damaged pages then)"
        say(describe(one) + state)
    for name in lost:
        say(f"{name}  CANNOT BE READ: both copies of its manifest are damaged")
    present = [one for one in backups if one["backup"] not in deleted]
    if present:
        say(f"\nNewest on this medium: {present[-1]['backup']} (number {present[-1]['sequence']}).")
        say("Compare it with your own log: a medium cannot show what was taken away from it.")
    elif not lost:
        say("There is no backup here.")


def choose(repository: Repository, wanted: str, cluster: str | None) -> dict[str, Any]:
    """Raises: Usage."""
    backups, _ = repository.backups()
    if wanted != "latest":
        matching = [one for one in backups if one["backup"].startswith(wanted) or one["backup"].endswith("-" + wanted)]
        if len(matching) != 1:
            raise Usage(f"{len(matching)} backups match {wanted!r}", "`rescue.py list` shows their names.")
        return matching[0]
    deleted = repository.deleted()
    present = [one for one in backups if one["backup"] not in deleted and cluster in (None, one.get("cluster"))]
    if not present:
        raise Usage("there is no backup here" + (f" of {cluster}" if cluster else ""), "`rescue.py list` shows all.")
    servers = {one.get("system_identifier"): plain(one.get("cluster")) for one in present}
    if len(servers) > 1:
        names = ", ".join(sorted(servers.values()))
        raise Usage(f"backups of several servers are here: {names}", "Name one with --cluster, or name the backup.")
    return present[-1]


def read_secret(options: argparse.Namespace) -> Secret:
    """From the file that was named, else typed. Raises: WrongSecret, Usage."""
    try:
        if options.code_file:
            return secret_of_code(Path(options.code_file).read_text(encoding="utf-8"))
        if options.passphrase_file:
            text = Path(options.passphrase_file).read_text(encoding="utf-8")
            return secret_of_passphrase(text[:-1].rstrip("\r") if text.endswith("\n") else text)
        if options.key_file:
            return secret_of_key_file(read_regular(Path(options.key_file), 4096))
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"the file with the secret cannot be read: {error}") from None
    if not sys.stdin.isatty():
        return secret_of_typing(sys.stdin.readline().rstrip("\r\n"))
    while True:
        try:
            return secret_of_typing(getpass.getpass("Recovery code from the printed kit, or passphrase (not shown): "))
        except WrongSecret as error:
            say(f"{error}. Try again, or press Ctrl-C to stop.")


def open_repository(options: argparse.Namespace, note: Callable[[str], None]) -> Repository:
    root = Path(options.repository).absolute()
    if not root.is_dir():
        raise NoRepository(f"{root} is no folder", "Give the repository's folder with --repository FOLDER.")
    folder = Path(options.libraries) if options.libraries else None
    libraries = find_libraries(root / "wheels", options.any_wheels, folder)
    say(f"Repository {root}; decrypting with {libraries.words}.")
    repository = Repository(root, libraries, note)
    if options.slot_file:
        repository.add_slot(Path(options.slot_file).read_text(encoding="ascii", errors="replace"))
    if not repository.slots:
        raise Damaged(
            "no key slot can be read in the folder keys",
            "The QR code of the printed kit holds one: scan it, save its text, and give it with --slot-file FILE.",
        )
    repository.unlock(read_secret(options) if repository.needs_secret else Secret(OPEN, OPEN_SECRET))
    return repository


def run_check(repository: Repository, options: argparse.Namespace) -> int:
    manifest = choose(repository, options.backup, options.cluster)
    say("Checking " + describe(manifest))
    damages = check_backup(Backup(repository, manifest), options.check_crc)
    if damages.files:
        say(f"DAMAGED: {len(damages.files)} files of this backup cannot be restored whole:")
        damages.tell()
        say("Try `check` on another backup of the list, or on another drive. Nothing was written.")
        return Damaged.code
    say("Everything this backup needs is here and authentic. Nothing was written.")
    if not options.check_crc:
        say("(AES-GCM vouches for every byte. --check-crc compares each file's checksum as well; it is slow.)")
    return 0


def run_restore(repository: Repository, options: argparse.Namespace, note: Callable[[str], None]) -> int:
    manifest = choose(repository, options.backup, options.cluster)
    owner_of(options.owner)
    say("Restoring " + describe(manifest))
    backup = Backup(repository, manifest)
    plan = plan_restore(backup, options)
    say(f"into {plan.target}: {plan.files} files and folders")
    try:
        damages = restore_backup(backup, plan, options, note)
    except BaseException:
        say(f"\nWhat was written to {plan.target} is incomplete and cannot start. Delete it before trying again.")
        raise
    if damages.files:
        say(f"\nDAMAGED: {len(damages.files)} files are not whole:")
        damages.tell()
        if not options.salvage:
            say("The folder has no control file and cannot start. Try another backup or another drive.")
        else:
            say("What could be read is written, with zeros for the rest. Show it to somebody who knows PostgreSQL.")
        return Damaged.code
    if manifest.get("checksum_failures"):
        note("the server itself had damaged pages when this backup was made")
    say(f"\nDONE. The data directory is {plan.target}. What to do next:")
    for number, step in enumerate(next_steps(manifest, plan, options.owner), 1):
        say(f"  {number}. {step}")
    return 0


def run_wal(repository: Repository, options: argparse.Namespace) -> int:
    manifest = choose(repository, options.backup, options.cluster)
    folder = Path(os.path.abspath(options.target))  # noqa: PTH100 - links in it stay as the owner wrote them
    require_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    high, low = str(manifest["start_lsn"]).split("/")
    say("Writing the WAL since " + describe(manifest))
    archive = Archive(repository, int(manifest["system_identifier"]))
    written, missing = write_wal(archive, (int(high, 16) << 32) + int(low, 16), folder)
    for one in missing[:50]:
        say(f"  MISSING {one}")
    if not written:
        say("This repository holds no archived WAL of that server: only the backups themselves come back.")
        return 0
    say(f"\nDONE. {written} segments are in {folder}. To have them replayed after `restore`:")
    for number, step in enumerate(wal_steps(folder, missing), 1):
        say(f"  {number}. {step}")
    return Damaged.code if missing else 0


def wal_steps(folder: Path, missing: Sequence[str]) -> list[str]:
    command = f'copy "{folder}\\%f" "%p"' if os.name == "nt" else f'cp "{folder}/%f" "%p"'
    steps = [
        "Before the first start of the restored directory make an empty file recovery.signal in it.",
        "Let the account that runs PostgreSQL read the folder: the server takes an unreadable file for the end.",
        f"Add to its postgresql.conf:  restore_command = '{command}'",
        "To stop at a moment add  recovery_target_time = '2026-11-23 14:30:00+00'",
        "Start it, and compare the newest records with what you expect. Then take the lines out again.",
    ]
    if missing:
        steps.append("What is MISSING above ends the replay there, whatever comes after it.")
    return steps


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rescue.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    own = str(Path(__file__).resolve().parent)
    common.add_argument("--repository", default=own, metavar="FOLDER", help="default: the folder of this file")
    secrets = common.add_mutually_exclusive_group()
    secrets.add_argument("--code-file", metavar="FILE", help="holds the recovery code from the printed kit")
    secrets.add_argument("--passphrase-file", metavar="FILE", help="holds the passphrase in one line")
    secrets.add_argument("--key-file", metavar="FILE", help="the key file of the service")
    common.add_argument("--slot-file", metavar="FILE", help="text of the kit's QR code, if the folder keys is lost")
    common.add_argument("--libraries", metavar="FOLDER", help="where libcrypto and libzstd are")
    common.add_argument("--any-wheels", action="store_true", help="load wheels this file was not delivered with")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--cluster", metavar="NAME", help="which server's latest backup")
    chosen.add_argument("--check-crc", action="store_true", help="compare each file's CRC-32C too (slow: 5-10 MB/s)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    wal = commands.add_parser("wal", parents=[common], help="write the archived WAL since a backup")
    wal.add_argument("words", nargs="+", metavar="[BACKUP] FOLDER")
    wal.add_argument("--cluster", metavar="NAME", help="which server's latest backup")
    commands.add_parser("list", parents=[common], help="which backups are here")
    check = commands.add_parser("check", parents=[common, chosen], help="read and authenticate; write nothing")
    check.add_argument("backup", nargs="?", default="latest")
    restore = commands.add_parser("restore", parents=[common, chosen], help="write the data directory")
    restore.add_argument("words", nargs="*", metavar="[BACKUP] TARGET")
    restore.add_argument("--check", action="store_true", help="only check; TARGET is not needed")
    restore.add_argument("--tablespace", action="append", default=[], metavar="OID=FOLDER", help="may be repeated")
    restore.add_argument("--owner", metavar="ACCOUNT", help="give the files to this account (as root)")
    restore.add_argument("--salvage", action="store_true", help="write what can be read, zeros for what cannot")
    restore.add_argument("--ignore-space", action="store_true", help="do not ask for room for pages of zeros")
    return parser


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        raise SystemExit(Usage.code)
    if options.command == "wal":
        if len(options.words) > 2:
            parser.error("wal needs a FOLDER, with the name of a backup before it if not the latest")
        options.backup = options.words[0] if len(options.words) == 2 else "latest"
        options.target = options.words[-1]
    if options.command == "restore":
        limit = 1 if options.check else 2
        if len(options.words) > limit or (not options.words and not options.check):
            parser.error("restore needs a TARGET folder, with the name of a backup before it if not the latest")
        given = options.words if options.check else options.words[:-1]
        options.backup = given[0] if given else "latest"
        options.target = "" if options.check else options.words[-1]
    return options


def run(options: argparse.Namespace) -> int:
    note = Notices()
    repository = open_repository(options, note)
    try:
        if options.command == "list":
            tell_list(repository)
            code = 0
        elif options.command == "wal":
            code = run_wal(repository, options)
        elif options.command == "check" or options.check:
            code = run_check(repository, options)
        else:
            code = run_restore(repository, options, note)
    finally:
        repository.close()
    return code or (3 if note.count else 0)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return run(read_options(words))
    except RescueError as error:
        say(f"\nSTOPPED: {error}.")
        hint = error.hint
        if isinstance(error, Damaged) and not hint:
            hint = "Try another backup of the list, or another drive that holds a copy."
        if hint:
            say(hint)
        return error.code
    except KeyboardInterrupt:
        say("\nSTOPPED on request.")
        return 130
    except OSError as error:
        say(f"\nSTOPPED: the system refused: {plain(error)}.")
        return 1


if __name__ == "__main__":
    if sys.version_info < (3, 8):  # noqa: UP036 - it runs on whatever a bare machine has
        sys.exit("This program needs Python 3.8 or newer.")
    sys.exit(main())
