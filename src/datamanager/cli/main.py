"""The entry point: gives a command to the command line, or, hundreds of times an hour, straight to ``wal push``."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datamanager.cli.lazy import lazy
from datamanager.cli.wal_push_call import plain_words, push

if TYPE_CHECKING:
    from datamanager.cli import root
else:
    root = lazy("datamanager.cli.root")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; ``arguments`` are those of the process unless given."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show must not end a backup.
            stream.reconfigure(errors="backslashreplace")
    # numpy brings a library of linear algebra, of which nothing is used; its threads, one a processor, spin when it is
    # loaded (25 ms of each of two processors).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    # What is left goes with the process; looking through it for garbage would take a tenth of a short command's time.
    gc.freeze()
    sys.exit(code)


def run(words: list[str]) -> int:
    """Run a command and return its exit code."""
    plain = plain_words(words)
    return root.run(words) if plain is None else push(*plain)


if __name__ == "__main__":
    main()
