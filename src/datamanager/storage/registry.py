"""From an address to a store: one explicit table of schemes.

``/mnt/drive``, ``E:\\backup`` and ``file:///mnt/usb%20drive`` are folders; anything else needs a known ``scheme://``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from datamanager.base.errors import UsageError
from datamanager.storage.base import Storage
from datamanager.storage.local import LocalStorage

# Two letters at least: a single one is a Windows drive. A path whose first part looks so is written ``./name:part``;
# taken for a path, a mistyped ``sftp:host`` would become a folder here.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_DRIVE_IN_URL = re.compile(r"/[A-Za-z]:(?=/|$)")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the stores of one scheme come about; both get the whole address, and the folders a put may make.

    ``create`` is also given every folder that keys will use; a store without folders ignores them.
    """

    open: Callable[[str, Iterable[str]], Storage]
    create: Callable[[str, Iterable[str], Iterable[str]], Storage]


def open_storage(url_or_path: str | Path, growing: Iterable[str] = ()) -> Storage:
    """Open the store at an address.

    Args: growing - top-level folders inside which a put may make subfolders; see LocalStorage.
    Raises: UsageError, on an address nobody here understands; whatever opening that store raises.
    """
    address = str(url_or_path)
    return _scheme_of(address).open(address, growing)


def create_storage(url_or_path: str | Path, folders: Iterable[str], growing: Iterable[str] = ()) -> Storage:
    """Make a new, empty store at an address, with these folders where stores have any; raises as open_storage."""
    address = str(url_or_path)
    return _scheme_of(address).create(address, folders, growing)


def local_path(url_or_path: str | Path) -> Path | None:
    """The folder that an address means, absolute; None when it is not on this host. Raises: UsageError."""
    address = str(url_or_path)
    if not address or "\0" in address:
        raise UsageError("open store: the address is empty or not a path")
    match = _SCHEME.match(address)
    if match is None:
        return Path(address).absolute()
    if match[1].lower() != "file":
        return None
    return Path(file_url_path(address, windows=os.name == "nt"))


def file_url_path(url: str, *, windows: bool) -> str:
    """The path in a ``file:`` URL, percent-encoding undone.

    Args: windows - whether ``/C:/x`` means ``C:/x`` and a host's name means a share.
    Raises: UsageError. Source: RFC 8089.
    """
    rest = url[len("file:") :]
    if "?" in rest or "#" in rest:
        raise UsageError(
            "open store: a file URL has no query and no fragment", hint="Write ? as %3F and # as %23, or give the path."
        )
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    path = os.fsdecode(unquote_to_bytes(path))
    if "\0" in path or not path.startswith("/"):
        raise UsageError(
            "open store: the file URL holds no absolute path", hint="Write three slashes: file:///mnt/drive/backups."
        )
    if host.lower() in ("", "localhost"):
        return path[1:] if windows and _DRIVE_IN_URL.match(path) else path
    if windows:
        return f"//{host}{path}"
    raise UsageError(
        f"open store: the file URL names the host {host}",
        hint="Mount that share and give its folder, or write three slashes: file:///mnt/drive/backups.",
    )


def _scheme_of(address: str) -> Scheme:
    match = _SCHEME.match(address)
    name = "file" if match is None else match[1].lower()
    if name not in SCHEMES:
        # The address itself may hold a password, so only the scheme is repeated.
        raise UsageError(
            f"open store: scheme {name}: is not known",
            hint=f"Give the path of a folder, or an address with one of these schemes: {', '.join(sorted(SCHEMES))}. "
            "A relative path with a colon starts with ./ here.",
        )
    return SCHEMES[name]


def _folder(address: str) -> Path:
    path = local_path(address)
    if path is None:
        raise UsageError("open store: not a folder of this host")
    return path


def _open_local(address: str, growing: Iterable[str]) -> Storage:
    return LocalStorage(_folder(address), growing)


def _create_local(address: str, folders: Iterable[str], growing: Iterable[str]) -> Storage:
    return LocalStorage.create(_folder(address), folders, growing)


SCHEMES: dict[str, Scheme] = {"file": Scheme(open=_open_local, create=_create_local)}
