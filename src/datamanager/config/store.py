"""Reading and changing ``config.toml``: comments stay, every change is checked whole before it is written durably."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from datamanager.base.errors import ConfigurationError
from datamanager.base.files import write_durably
from datamanager.base.lazy import lazy
from datamanager.config.home import make_private_folder
from datamanager.config.model import (
    ChannelConfig,
    ClusterConfig,
    Config,
    LogsConfig,
    MetricsConfig,
    NotifyConfig,
    ProofConfig,
    RepositoryConfig,
    ServiceConfig,
    StateConfig,
)

if TYPE_CHECKING:
    import tomlkit.exceptions
else:
    tomlkit = lazy("tomlkit")  # for changes alone: it reads the file ten times slower, and most commands change nothing

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HEADER = "# DataManager for PostgreSQL. Change it here or with `datamanager config set`; every start checks it.\n"
# Sections whose options stand under a name of their own each, and those that stand alone.
SECTIONS: Mapping[str, type[BaseModel]] = {
    "repositories": RepositoryConfig,
    "clusters": ClusterConfig,
    "services": ServiceConfig,
    "channels": ChannelConfig,
}
SINGLE: Mapping[str, type[BaseModel]] = {
    "state": StateConfig,
    "notify": NotifyConfig,
    "logs": LogsConfig,
    "proof": ProofConfig,
    "metrics": MetricsConfig,
}


def load(path: Path) -> Config:
    """The configuration in force; an absent file means the defaults. Raises: ConfigurationError."""
    try:
        values = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(path, error) from error
    return _validate(values, path)


class ConfigEditor:
    """One change of the file, made of ``set`` and ``remove``; nothing is written before ``save``."""

    def __init__(self, path: Path) -> None:
        """Raises: ConfigurationError, when the file as it is cannot be understood."""
        self._path = path
        self._before = _read(path)
        self._document = _parse(self._before, path)
        self.config = _validate(self._document.unwrap(), path)

    def set(self, keys: tuple[str, ...], value: str | int | float | bool | list[str] | None) -> None:
        """Give the option at ``keys`` a value; None takes it away, so that its default holds."""
        table: Any = self._document
        for key in keys[:-1]:
            if key not in table:
                table.add(key, tomlkit.table(is_super_table=table is self._document and len(keys) > 2))
            table = table[key]
        if value is None:
            table.pop(keys[-1], None)
        else:
            table[keys[-1]] = value

    def set_text(self, section: str, name: str | None, option: str, text: str) -> None:
        """The same with a value as a person types it; an empty one takes the option away.

        A value that does not fit is kept as text, so that ``save`` says why.
        Args: name - None for a section that stands alone (``notify``).
        """
        keys = (section,) if name is None else (section, name)
        value: str | int | float | bool | list[str] | None = text or None
        if text:
            present = self._document.unwrap()
            for key in keys:
                present = present.get(key, {})
            with contextlib.suppress(ValidationError):
                read = _model(section).model_validate({**present, option: text}).model_dump(mode="json")[option]
                # A size keeps the unit that it was written with.
                plain = isinstance(read, bool | float | list) or (isinstance(read, int) and text.isdigit())
                value = read if plain else text
        self.set((*keys, option), value)

    def remove(self, keys: tuple[str, ...]) -> None:
        """Take away a whole section."""
        table: Any = self._document
        for key in keys[:-1]:
            table = table[key]
        del table[keys[-1]]

    def checked(self) -> Config:
        """What ``save`` would bring into force; nothing is written. Raises: ConfigurationError."""
        document = _parse(tomlkit.dumps(self._document), self._path)
        return _validate(document.unwrap(), self._path, changing=True)

    def save(self) -> Config:
        """Check the whole and replace the file. Raises: ConfigurationError, with the old file in force."""
        config = self.checked()
        text = tomlkit.dumps(self._document)
        make_private_folder(self._path.parent)
        with _only_writer(self._path):
            if _read(self._path) != self._before:
                raise ConfigurationError(
                    f"write {self._path}: another program has changed it meanwhile", hint="Run the command again."
                )
            _write(self._path, (text if self._before else _HEADER + "\n" + text).encode())
        return config


def option_names(section: str) -> list[str]:
    """The options of a section (``repositories``, ``notify``), as the file names them."""
    return list(_model(section).model_fields)


def _model(section: str) -> type[BaseModel]:
    return SECTIONS.get(section) or SINGLE[section]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigurationError(
            f"read {path}: {(cause or 'cannot be read').lower()}",
            hint="Run this as an account that may read it, or mend the file.",
        ) from error


def _parse(text: str, path: Path) -> tomlkit.TOMLDocument:
    try:
        return tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as error:
        raise _no_toml(path, error) from error


def _no_toml(path: Path, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"read {path}: {error}", hint="Mend that line; the file is in TOML.")


def _validate(values: Mapping[str, Any], path: Path, *, changing: bool = False) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = [str(part) for part in first["loc"] if part != "[key]"]
        where = f"{'set' if changing else f'read {path}:'} {'.'.join(place)}"
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(f"{where} is not an option", hint=_nearest(place)) from None
        cause = first["msg"].removeprefix("Value error, ")
        hint = "Give another value; nothing was changed." if changing else "Mend it in that file."
        raise ConfigurationError(f"{where}: {cause[:1].lower()}{cause[1:]}", hint=hint) from None


def _nearest(place: list[str]) -> str:
    """A sentence that names what was probably meant."""
    known = [*SECTIONS, *SINGLE] if len(place) == 1 else option_names(place[0])
    close = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]}? The options here are: {', '.join(known)}."
    return f"The options here are: {', '.join(known)}."


def _write(path: Path, data: bytes) -> None:
    """Replace the file; its mode and, where permitted, its owner stay."""
    try:
        before = path.stat() if path.exists() else None
        write_durably(path, data, mode=0o644 if before is None else before.st_mode & 0o777)
        if before is not None and os.name != "nt":
            with contextlib.suppress(PermissionError):
                os.chown(path, before.st_uid, before.st_gid)
    except OSError as error:
        raise ConfigurationError(
            f"write {path}: {(error.strerror or 'cannot be written').lower()}",
            hint="Run this as the account that owns the configuration.",
        ) from error


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold a lock beside the configuration; the system gives it back when this process ends, however it ends."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(
            f"write {path}: {(error.strerror or 'cannot be written').lower()}",
            hint="Run this as the account that owns the configuration; if another one is changing it, run it again.",
        ) from error


def _lock(descriptor: int) -> None:
    """Wait for the lock (on Windows ten seconds at most). Raises: OSError. Source: flock(2), _locking()."""
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
