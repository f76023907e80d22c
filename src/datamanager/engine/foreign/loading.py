"""What every load of a dump has in common: programs that are new enough, psql's arguments, what a failure says."""

from __future__ import annotations

import re
from pathlib import Path

from datamanager.base.errors import ProgramMissing, RestoreFailed
from datamanager.base.events import Listener, Progress
from datamanager.engine.foreign.client import ClientResult
from datamanager.engine.foreign.script import Feed
from datamanager.postgres.account import Account
from datamanager.postgres.programs import Programs, find_programs

NEWEST_MAJOR = 18
# From these on psql knows \\restrict, without which a script may run programs. Source: CVE-2025-8714.
_RESTRICTING = {14: 19, 15: 14, 16: 10, 17: 6}
_PSQL_ERROR = re.compile(r"^psql:<stdin>:(\d+): (.*)", re.MULTILINE)


def programs_from(major: int, install_path: Path | None, account: Account | None = None) -> Programs:
    """Those of the wanted major or of the next newer one at hand. Raises: ProgramMissing."""
    first: ProgramMissing | None = None
    for one in range(major, max(major, NEWEST_MAJOR) + 1):
        try:
            return find_programs(one, install_path, account=account)
        except ProgramMissing as error:
            first = first or error
    raise first or ProgramMissing(f"find PostgreSQL {major}: its programs are not installed")


def check_psql(programs: Programs) -> None:
    minor = re.match(r"\d+\.(\d+)", programs.version)
    if minor is not None and int(minor[1]) < _RESTRICTING.get(programs.major, 0):
        raise ProgramMissing(
            f"restore script: psql {programs.version} lets a script run programs on this machine (CVE-2025-8714)",
            hint=f"Update PostgreSQL {programs.major}, or, if you trust the script, run it yourself: psql -f FILE.",
        )


def psql_words(conninfo: str, *, single: bool) -> list[str]:
    """The arguments with which psql runs a script from its standard input and stops at the first error."""
    words = ["-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", *(["--single-transaction"] if single else [])]
    return [*words, "-f", "-", "-d", conninfo]


def check_script(done: ClientResult, feed: Feed) -> None:
    """Raises: RestoreFailed, unless psql ended well."""
    if done.status == 0:
        return
    found = [*_PSQL_ERROR.finditer(done.said)]
    if not found:
        raise failed("", (done.said.strip().splitlines() or ["psql ended without a word"])[-1], done.said)
    last = found[-1]
    raise failed(feed.object_at(int(last[1])), last[2], done.said[last.start() :])


def failed(entry: str, cause: str, said: str) -> RestoreFailed:
    """The error for a statement that the server refused. Args: entry - the object it belongs to; empty if unknown."""
    where = f"{entry}: " if entry else ""
    hint = "Nothing was kept. Mend what the message names, and restore the file once more."
    if re.search(r"extension \S+ is not available|could not open extension control file|could not access file", said):
        hint = "Nothing was kept. Install the extension's package on the server, and restore the file once more."
    elif re.search(r'role "[^"]*" does not exist', said):
        hint = "Nothing was kept. Restore once more with --create-roles, or with --no-owner."
    return RestoreFailed(f"restore dump: {where}{' '.join(cause.split())[:500]}", hint=hint)


class FileProgress:
    """Bytes of the file that were read."""

    def __init__(self, listener: Listener, total: int) -> None:
        self._listener = listener
        self._total = total
        self._done = 0

    def add(self, size: int) -> None:
        self.at(self._done + size)

    def at(self, done: int) -> None:
        self._done = max(self._done, min(done, self._total))
        self._listener(Progress(self._done, self._total))
