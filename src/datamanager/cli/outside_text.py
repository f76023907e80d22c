"""Configuration from outside a data directory, after a restore: where it lies, where it belongs, how it is used."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamanager.engine.restore.outside import PutBack, outside_folder, start_options


def fields(done: Sequence[PutBack]) -> dict[str, Any]:
    """For ``--json``: paths only."""
    return {
        "outside_files": [
            {"path": one.path, "place": None if one.place is None else str(one.place), "kept": one.place is not None}
            for one in done
        ]
    }


def sentences(done: Sequence[PutBack], target: Path) -> str:
    """Lines to follow the result, each with its line end before it; empty when nothing lay outside."""
    if not done:
        return ""
    folder = outside_folder(target)
    lines = [f"The cluster's configuration outside its data directory is in {folder}; each file belongs to:"]
    lines += [f"  {one.path}" + (f" (not in the backup: {one.left_out})" if one.place is None else "") for one in done]
    options = start_options(list(done), target)
    if options:
        words = " ".join(f"-c {_quoted(f'{name}={value}')}" for name, value in options.items())
        lines += [
            "Copy them there, or start the server with them from where they are (check port and listen_addresses):",
            f"  pg_ctl -D {_quoted(str(target))} -o {_quoted(words)} start",
        ]
    else:
        lines.append("Copy them there before the server is started.")
    return "".join(f"\n{line}" for line in lines)


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '\\"') + '"' if sys.platform == "win32" else shlex.quote(word)
