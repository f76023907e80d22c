"""What ``wal push`` does, with an exit code as its end, and the reading of its usual words without the command line.

PostgreSQL starts it once a segment, with the same words each time. Loading click would take as long as sealing the
segment, so words as ``archive_command`` has them are read here; all others (help, mistakes, other spellings) are for
click.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datamanager.base.errors import DataManagerError
from datamanager.cli.lazy import lazy

if TYPE_CHECKING:
    from datamanager.app import wal_push
    from datamanager.cli import output
else:
    output = lazy("datamanager.cli.output")
    wal_push = lazy("datamanager.app.wal_push")

# From 126 on PostgreSQL's archiver ends without counting a failure. Source: pgarch.c, field notes 4.8.
_FIRST_FATAL = 126
_FAILED = 1


# The arguments of ``push``.
PlainWords = tuple[Path, str, str | None, bool]


def push(path: Path, cluster: str, repository: str | None, json_lines: bool) -> int:
    """Store a file and return an exit code, always below 126; without a job and a log. Raises: nothing."""
    code = 0
    try:
        pushed = wal_push.push(path, cluster, repository)
        if json_lines:
            values = {"exit_code": 0, "file": pushed.name, "line": pushed.line or None, "bytes": pushed.stored_bytes}
            output.report_result(values)
    except DataManagerError as error:
        code = error.exit_code
        output.report_error(error, json_lines=json_lines)
    except KeyboardInterrupt:
        code = _FAILED
    except Exception as error:  # noqa: BLE001 - whatever it is, the archiver must try again and count it
        code = _FAILED
        failure = DataManagerError(f"push WAL: unexpected {type(error).__name__}: {error}".split("\n", 1)[0])
        output.report_error(failure, json_lines=json_lines)
    return code if code < _FIRST_FATAL else _FAILED


def plain_words(words: list[str]) -> PlainWords | None:
    """What these words say; None when they are another command's, or spelled in a way that click must read.

    Plain is ``wal push PATH --cluster NAME [--repo NAME] [--json]`` in any order, each once.
    """
    if words[:2] != ["wal", "push"]:
        return None
    values: dict[str, str] = {}
    left = iter(words[2:])
    for word in left:
        name = word if word.startswith("-") else "PATH"
        value = next(left, "") if name in ("--cluster", "--repo") else word
        if name in values or name not in ("PATH", "--cluster", "--repo", "--json"):
            return None
        if not value or (value.startswith("-") and name != "--json"):
            return None
        values[name] = value
    if "PATH" not in values or "--cluster" not in values:
        return None
    return Path(values["PATH"]), values["--cluster"], values.get("--repo"), "--json" in values
