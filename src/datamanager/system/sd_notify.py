"""Telling systemd that the service is up, lives, and is about to end; nothing happens where no systemd listens.

Source: sd_notify(3), sd_watchdog_enabled(3): one datagram of ``NAME=value`` lines to the socket in NOTIFY_SOCKET.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceNotifier:
    """Tells the service manager of this process. Not thread-safe; owns no descriptor between calls."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(environment)

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        self._tell(f"STATUS={status}")

    def alive(self) -> None:
        """To be said at least every half of ``watchdog_seconds``."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        # An abstract address is written with @ for its zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        text = "\n".join(line.replace("\n", " ") for line in lines)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            datagram.setblocking(False)
            datagram.sendto(text.encode(), address)


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """After how long systemd ends a service that says nothing; None when it does not watch this process."""
    with contextlib.suppress(KeyError, ValueError):
        if int(environment.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return int(environment["WATCHDOG_USEC"]) / 1e6
    return None
