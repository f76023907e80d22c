"""Files that hold a secret: written for their owner alone, refused when others may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from datamanager.base.errors import ConfigurationError, NotFound
from datamanager.base.files import write_durably
from datamanager.base.units import Secret

MAX_SECRET_BYTES = 64 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_secret_file(path: Path, what: str) -> bytes:
    """The content of a secret file, verbatim.

    Args: what - ``key file``, ``password file``… for the message.
    Raises: NotFound; ConfigurationError, when other accounts may read it (POSIX; pipes are no files and pass).
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if os.name != "nt" and stat.S_ISREG(status.st_mode) and status.st_mode & _OTHERS:
                raise ConfigurationError(
                    f"read {what}: other accounts may read {path}", hint=f"Run `chmod 600 '{path}'` and try again."
                )
            data = file.read(MAX_SECRET_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"read {what}: {path} is not there", hint="Check the path of the file.") from error
    except OSError as error:
        raise ConfigurationError(
            f"read {what}: {path}: {(error.strerror or 'cannot be read').lower()}",
            hint="Run this as the account that owns the file, or give another file.",
        ) from error
    if len(data) > MAX_SECRET_BYTES:
        raise ConfigurationError(f"read {what}: {path} is too large to be one", hint="Check the path of the file.")
    return data


def read_secret_line(path: Path, what: str) -> Secret:
    """The first line of a secret file. Raises: as ``read_secret_file``; ConfigurationError when it is empty."""
    return first_line(read_secret_file(path, what), f"{what} {path}")


def first_line(data: bytes, what: str) -> Secret:
    """A secret as one line of text. Raises: ConfigurationError."""
    line = data.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        line.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"read {what}: it is not text in UTF-8", hint="Save the file as UTF-8.") from None
    if not line:
        raise ConfigurationError(f"read {what}: its first line is empty", hint="Write the secret on the first line.")
    return Secret(line)


def write_secret_file(path: Path, data: bytes, what: str) -> None:
    """Write a new file that its owner alone may read. Raises: ConfigurationError, when one is there or cannot be."""
    if path.exists():
        raise ConfigurationError(f"write {what}: {path} is there already", hint="Move it away, or give another path.")
    try:
        write_durably(path, data, mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"write {what}: {path}: {(error.strerror or 'cannot be written').lower()}",
            hint="Give a folder that exists and that this account may write.",
        ) from error
