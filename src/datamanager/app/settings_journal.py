"""What this program changed on servers, when, for whom: one JSON object a line, only ever appended to.

``server-settings.jsonl`` in the state folder. A change is written down before it is made (``begun``), so that none is
ever forgotten, and again once it is in force (``set``), was refused (``refused``), was put back (``put back``) or is no
longer ours to put back (``left``).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from datamanager.base.clock import Clock
from datamanager.base.errors import ConfigurationError
from datamanager.base.files import sync_directory
from datamanager.config.home import Home, make_private_folder
from datamanager.postgres.settings import SettingChange
from datamanager.system.accounts import account_name as account_name

FILE = "server-settings.jsonl"
Action = Literal["begun", "set", "refused", "put back", "left"]


@dataclass(frozen=True)
class ChangedServer:
    """Which server a change is of: the cluster's name here, its address without secrets, its system identifier."""

    cluster: str
    address: str
    system_identifier: int | None


class SettingsJournal:
    """The journal of one home. Not thread-safe; several processes may append."""

    def __init__(self, home: Home, clock: Clock) -> None:
        self._home = home
        self._clock = clock

    @property
    def path(self) -> Path:
        return self._home.state / FILE

    def write(self, action: Action, server: ChangedServer, changes: Iterable[SettingChange]) -> None:
        """Append one line a change; on return they are durable. Raises: ConfigurationError."""
        lines = [self._line(action, server, one) for one in changes]
        if not lines:
            return
        make_private_folder(self._home.state)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                # A line that a power cut left unfinished must not swallow the next.
                last = b"\n"
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    last = file.read(1)
                file.write((b"" if last == b"\n" else b"\n") + "".join(lines).encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ConfigurationError(
                f"write {self.path}: {(error.strerror or 'not possible').lower()}",
                hint="A server's settings are changed only when that can be written down; make the file writable.",
            ) from error
        sync_directory(self.path.parent)

    def _line(self, action: Action, server: ChangedServer, change: SettingChange) -> str:
        values = {
            "time": f"{self._clock.now():%Y-%m-%dT%H:%M:%S.%fZ}",
            "action": action,
            "account": account_name(),
            "host": socket.gethostname(),
            "cluster": server.cluster,
            "server": server.address,
            "system_identifier": None if server.system_identifier is None else str(server.system_identifier),
            **vars(change),
        }
        return json.dumps(values) + "\n"

    def records(self) -> list[dict[str, Any]]:
        """Every line that can be read, oldest first. Raises: ConfigurationError."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigurationError(f"read {self.path}: {(error.strerror or 'not possible').lower()}") from error
        found = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"action", "cluster", "name", "after"} <= record.keys():
                found.append(record)
        return found

    def outstanding(self, cluster: str) -> tuple[ChangedServer | None, list[SettingChange]]:
        """The changes of a cluster that were made, or begun, and not put back; and on which server.

        Raises: ConfigurationError.
        """
        names = [one.name for one in fields(SettingChange)]
        standing: dict[str, SettingChange] = {}
        server: ChangedServer | None = None
        for record in self.records():
            if record["cluster"] != cluster:
                continue
            change = SettingChange(**{name: record[name] for name in names if name in record})
            if record["action"] not in ("begun", "set"):
                standing.pop(change.name, None)
                continue
            identifier = record.get("system_identifier")
            server = ChangedServer(cluster, record.get("server", ""), int(identifier) if identifier else None)
            earlier = standing.get(change.name)
            if earlier is not None and change.before == earlier.after:  # changed twice: what was there first counts
                change = replace(change, before=earlier.before, shown_before=earlier.shown_before)
            standing[change.name] = change
        return server, list(standing.values())
