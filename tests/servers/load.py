"""Writers at work while something else happens: pgbench in the background, with its failures counted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.servers.account import process_options

# pgbench ends by itself after this, should nobody stop it.
LONGEST_SECONDS = 1800


class Load:
    """A pgbench that runs until ``stop``; afterwards ``transactions`` and ``failed`` are known.

    One owner, not thread-safe. ``failed`` counts transactions that pgbench gave up and clients that it aborted: a
    client ends at its first error that is neither a deadlock nor a serialization failure.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        """Start ``command``, a pgbench with ``-T``; its output goes to files in ``folder``."""
        self.transactions = 0
        self.failed = 0
        self.output = ""
        self._outputs = (folder / "pgbench.out", folder / "pgbench.err")
        with open(self._outputs[0], "w") as out, open(self._outputs[1], "w") as err:
            self._process = self._start(command, environment, folder, out, err)

    @staticmethod
    def _start(
        command: list[str], environment: Mapping[str, str], folder: Path, out: IO[str], err: IO[str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **process_options()
        )

    @property
    def running(self) -> bool:
        """Whether any client is still at work."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Let the running transactions end, then read what pgbench reports; may be called twice.

        The alarm is what pgbench sets for its own ``-T``: it ends as if the time were up. Windows has no alarm, so
        there the process is ended, and ``transactions`` stays 0.
        """
        if self.running:
            if sys.platform == "win32":
                self._process.terminate()
            else:
                self._process.send_signal(signal.SIGALRM)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        out, err = (path.read_text(errors="replace") for path in self._outputs)
        self.output = out + err
        processed = re.search(r"transactions actually processed: (\d+)", out)
        given_up = re.search(r"number of failed transactions: (\d+)", out)
        self.transactions = int(processed[1]) if processed else 0
        self.failed = (int(given_up[1]) if given_up else 0) + len(
            set(re.findall(r"client (\d+) (?:script \d+ )?aborted", err))
        )
        if self._process.returncode != 0 and self.failed == 0 and sys.platform != "win32":
            # It could not even start; that must not look like a load without failures.
            self.failed = 1
