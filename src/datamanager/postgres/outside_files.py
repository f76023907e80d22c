"""The configuration files of a cluster that lie outside its data directory, as Debian has them, with what they include.

BASE_BACKUP sends the data directory alone, so these are read beside it: from the disk where the cluster is on this
machine and the file may be read, else through the server where its role may. Certificates come along, private keys
never do. Includes are followed through files in the data directory too. What cannot be read is a warning.
"""

from __future__ import annotations

import json
import ntpath
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

from datamanager.postgres.conf_syntax import Include, IncludeKind, hba_includes, settings_of
from datamanager.postgres.file_access import FileAccess, ReadFile
from datamanager.postgres.outside_model import MOST_OUTSIDE_BYTES, OutsideFile, OutsideRole

_MOST_FILES = 1000
_MOST_NAMED = 5
_MOST_DEPTH = 10  # as the server has it
_CERTIFICATES = ("ssl_cert_file", "ssl_ca_file", "ssl_crl_file", "ssl_dh_params_file")
_KEY = "ssl_key_file"


@dataclass(frozen=True)
class Wanted:
    """Where to begin.

    Args:
        data_directory: files in there come with the backup itself.
        config_file: None for a cluster whose configuration was not found.
        settings: values in force, which beat those in the files (``hba_file``, ``ident_file``, ``ssl_*_file``).
        known_files: files that are known to have a part in the configuration, for folders that cannot be listed.
        windows: the server runs on Windows.
        remedy: a sentence that says how files that could not be read come along next time.
    """

    data_directory: str
    config_file: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    known_files: Sequence[str] = ()
    windows: bool = False
    remedy: str = ""


@dataclass(frozen=True)
class Collected:
    """What was found; ``settings`` are the last values in the files that were read."""

    files: tuple[OutsideFile, ...] = ()
    warnings: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def collect_outside(wanted: Wanted, accesses: Sequence[FileAccess]) -> Collected:
    """Read the files outside. Args: accesses - ways to read a file, the best first. Raises: Cancelled."""
    collector = _Collector(wanted, accesses)
    if wanted.config_file is not None:
        collector.follow(wanted.config_file, OutsideRole.CONFIG, 0, is_conf=True)
    for role, default in ((OutsideRole.HBA, "pg_hba.conf"), (OutsideRole.IDENT, "pg_ident.conf")):
        collector.follow(collector.setting(role.value) or default, role, 0, is_conf=False)
    for name in _CERTIFICATES:
        collector.keep_certificate(collector.setting(name))
    collector.name_key(collector.setting(_KEY))
    return Collected(tuple(collector.found.values()), collector.all_warnings(), collector.settings)


class _Collector:
    """One collection. ``found`` is by path, in the order of reading."""

    def __init__(self, wanted: Wanted, accesses: Sequence[FileAccess]) -> None:
        self._wanted = wanted
        self._accesses = accesses
        self._paths: ModuleType = ntpath if wanted.windows else posixpath
        self._seen: set[str] = set()
        self._room = MOST_OUTSIDE_BYTES
        self.found: dict[str, OutsideFile] = {}
        self.warnings: list[str] = []
        self._unread: dict[str, str] = {}
        self.settings: dict[str, str] = {}

    def setting(self, name: str) -> str:
        """A value in force, else the one in the files."""
        return self._wanted.settings.get(name) or self.settings.get(name, "")

    def follow(self, path: str, role: OutsideRole, depth: int, *, is_conf: bool, optional: bool = False) -> None:
        """A file and what it includes. Args: is_conf - written as postgresql.conf is, not as pg_hba.conf."""
        path = self._absolute(path, self._wanted.data_directory)
        if path in self._seen or len(self._seen) >= _MOST_FILES or depth > _MOST_DEPTH:
            return
        self._seen.add(path)
        read = self._read(path, optional=optional)
        if read is None:
            return
        self._keep(path, role, *read)
        for item in settings_of(read[0].data) if is_conf else hba_includes(read[0].data):
            if isinstance(item, Include):
                self._include(item, self._paths.dirname(path), depth + 1, is_conf=is_conf)
            else:
                self.settings[item[0]] = item[1]

    def keep_certificate(self, path: str) -> None:
        """A file that is kept as it is; a path within the data directory comes with the backup."""
        if path:
            path = self._absolute(path, self._wanted.data_directory)
            if path not in self._seen and self._is_outside(path):
                self._seen.add(path)
                read = self._read(path, optional=False)
                if read is not None:
                    self._keep(path, OutsideRole.CERTIFICATE, *read)

    def name_key(self, path: str) -> None:
        """A private key outside is named and never read."""
        if path:
            path = self._absolute(path, self._wanted.data_directory)
            if self._is_outside(path):
                self._leave_out(path, OutsideRole.PRIVATE_KEY, "it is a private key", 0)

    def _include(self, include: Include, folder: str, depth: int, *, is_conf: bool) -> None:
        path = self._absolute(include.name, folder)
        if include.kind is not IncludeKind.FOLDER:
            optional = include.kind is IncludeKind.IF_EXISTS
            self.follow(path, OutsideRole.INCLUDED, depth, is_conf=is_conf, optional=optional)
            return
        for name in self._names(path):
            if name.endswith(".conf") and not name.startswith("."):
                self.follow(self._paths.join(path, name), OutsideRole.INCLUDED, depth, is_conf=is_conf)

    def _read(self, path: str, *, optional: bool) -> tuple[ReadFile, str] | None:
        """The file and who read it; what cannot be read is a warning when it is wanted."""
        reason = ""
        for access in self._accesses:
            try:
                return access.read(path), access.title
            except FileNotFoundError:
                reason = "it is not there"
                break
            except OSError as error:
                reason = _clause(error)
        if self._is_outside(path) and not (optional and reason == "it is not there"):
            self._warn(path, reason)
        return None

    def _names(self, folder: str) -> list[str]:
        reason = ""
        for access in self._accesses:
            try:
                return access.names(folder)
            except FileNotFoundError:
                return []
            except OSError as error:
                reason = _clause(error)
        known = [one for one in self._wanted.known_files if self._paths.dirname(self._normal(one)) == folder]
        if self._is_outside(folder):
            self._warn(folder, reason)
        return sorted(self._paths.basename(one) for one in known)

    def _keep(self, path: str, role: OutsideRole, read: ReadFile, title: str) -> None:
        if not self._is_outside(path):
            return
        content = read.data.decode("latin-1")
        weight = len(json.dumps(content, ensure_ascii=False).encode())  # as it will stand in the manifest
        if weight > self._room:
            self._leave_out(path, role, "together the files are larger than 1 MiB", read.size)
            self.warnings.append(f"{_shown(path)} is too large to be kept with the backup")
            return
        self._room -= weight
        self.found[path] = OutsideFile(_shown(path), role.value, read.mode, read.size, content, title)

    def _leave_out(self, path: str, role: OutsideRole, why: str, size: int) -> None:
        self.found[path] = OutsideFile(_shown(path), role.value, 0o600, size, None, "", why)

    def _warn(self, path: str, reason: str) -> None:
        if reason == "it is not there":
            self.warnings.append(f"{_shown(path)}, which the configuration names, is not there")
        else:
            self._unread.setdefault(_shown(path), reason or "nobody may read it")

    def all_warnings(self) -> tuple[str, ...]:
        """One sentence for everything that could not be read, with the remedy."""
        if not self._unread:
            return tuple(self.warnings)
        names = list(self._unread)
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        named = ", ".join(f"{name} ({self._unread[name]})" for name in names[:_MOST_NAMED])
        said = f"configuration outside the data directory is not in this backup: {named}{more}"
        return (*self.warnings, f"{said}. {self._wanted.remedy}".rstrip(". "))

    def _is_outside(self, path: str) -> bool:
        """Not sent with the data directory: it lies elsewhere, or a link stands in its place."""
        root = self._normal(self._wanted.data_directory)
        try:
            within = bool(self._paths.commonpath([self._case(root), self._case(path)]) == self._case(root))
        except ValueError:  # another drive
            return True
        return not within or any(access.is_link(path) for access in self._accesses)

    def _absolute(self, path: str, folder: str) -> str:
        return self._normal(self._paths.join(folder, path))

    def _normal(self, path: str) -> str:
        return str(self._paths.normpath(path))

    def _case(self, path: str) -> str:
        return str(self._paths.normcase(path))


def _clause(error: OSError) -> str:
    return (error.strerror or type(error).__name__).rstrip(".").replace("\n", " ")


def _shown(path: str) -> str:
    """A name that can be shown and stored: bytes that are not UTF-8 appear as ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
