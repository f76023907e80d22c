"""A command that kills itself when it tells of a phase: ``python -m tests.cli.dying BEGINNING WORDS… --json``.

Who reads the phase from a pipe and kills then comes too late on a busy machine.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys

from datamanager.cli import main


class _Ear(io.TextIOWrapper):
    """Standard output that listens."""

    phase = ""

    def write(self, text: str, /) -> int:
        if f'"phase": {json.dumps(self.phase)[:-1]}' in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(text)


if __name__ == "__main__":
    ear = _Ear(sys.stdout.buffer, encoding="utf-8", line_buffering=True)
    ear.phase = sys.argv[1]
    sys.stdout = ear
    sys.exit(main.run(sys.argv[2:]))
