"""Which pages were wrong when the server read them.

The server names at most five pages a file, in its own language, and fails after the last byte. The backup is kept, for
it may hold the last good copy of everything else; so the pages are found here, from what was stored, and the backup is
flagged. Source: ``docs/design.md``, PostgreSQL decision 18; src/backend/backup/basebackup.c, sendFile.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from datamanager.base.pipeline import StopToken
from datamanager.base.units import Lsn
from datamanager.postgres.page import relation_segment, wrong_blocks
from datamanager.repository.layers.contents import Contents
from datamanager.repository.layers.layer import FileKind
from datamanager.repository.manifest import ChecksumFailure
from datamanager.repository.packs.chunk_reader import read_pages
from datamanager.repository.repository import Repository

# Database and relation name a file in any tablespace, whatever directory, language and quotes the message uses.
_NAMED = re.compile(r"(?:global|\d+)/\d+(?:_[a-z]+)?(?:\.\d+)?(?![\w./])")
_TAIL = 2


def find_damage(
    repository: Repository,
    contents: Contents,
    notices: tuple[str, ...],
    start: Lsn,
    segment_size: int,
    stop: StopToken,
) -> list[ChecksumFailure]:
    """Judge every relation that a notice names, or all of them when none can be recognized.

    Args: start - LSN at which the backup began: later pages are rewritten by replay.
    Raises: IntegrityError, StoreError, Cancelled.
    """
    named = {name for notice in notices for name in _NAMED.findall(notice)}

    def judge(wanted: Callable[[str], bool]) -> list[ChecksumFailure]:
        found = []
        for entry in contents.files():
            stop.check()
            path = entry.path.decode(errors="surrogateescape")
            segment = relation_segment(entry.path)
            if entry.kind is not FileKind.REGULAR or segment is None or not wanted(path):
                continue
            first = segment * (segment_size // contents.page_size)
            wrong = [
                block - first
                for page, data in read_pages(repository, contents, entry)
                for block in wrong_blocks(data, contents.page_size, first + page, start)
            ]
            if wrong:
                found.append(ChecksumFailure(entry.path.decode(errors="replace"), wrong))
        return found

    return judge(lambda path: _tail(path) in named) or judge(lambda _: True)


def _tail(path: str) -> str:
    return "/".join(path.split("/")[-_TAIL:])
