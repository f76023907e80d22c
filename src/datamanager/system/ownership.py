"""Giving what root left in an account's folder to that account, so that its jobs can use it.

Root may be led astray in a folder that another account can write: a link, or a name that becomes another file between
a look and a change. So every step holds the folder open, follows no link, and changes what was opened and looked at.

Source: openat(2), fchown(2), O_NOFOLLOW.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path

_MOST_ENTRIES = 20_000
_DEEPEST = 4


def hand_over(folder: Path, user_id: int, group_id: int, *, leave: Collection[str] = (), itself: bool = True) -> int:
    """Make an account the owner of ``folder`` and of what root owns in it; returns how many entries changed.

    Args: leave - names directly in it that stay as they are, with all they hold; itself - the folder, too.
    Files with a second name stay as they are: the other name may be anywhere. Only for root; nothing is raised.
    """
    if sys.platform == "win32":
        return 0
    walk = _Walk(user_id, group_id)
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            walk.folder(descriptor, frozenset(leave), 0, itself=itself)
        finally:
            os.close(descriptor)
    return walk.changed


class _Walk:
    def __init__(self, user_id: int, group_id: int) -> None:
        self._owner = (user_id, group_id)
        self._left = _MOST_ENTRIES
        self.changed = 0

    def folder(self, descriptor: int, leave: frozenset[str], depth: int, *, itself: bool = True) -> None:
        """Raises: OSError."""
        if itself:
            self._give(descriptor, os.fstat(descriptor))
        with os.scandir(descriptor) as entries:
            names = [entry.name for entry in entries if entry.name not in leave]
        for name in names:
            self._left -= 1
            if self._left < 0:
                return
            with contextlib.suppress(OSError):
                self._entry(descriptor, name, depth)

    def _entry(self, folder: int, name: str, depth: int) -> None:
        before = os.stat(name, dir_fd=folder, follow_symlinks=False)
        is_folder = stat.S_ISDIR(before.st_mode)
        if not is_folder and (before.st_uid != 0 or not stat.S_ISREG(before.st_mode)):
            return
        if is_folder and depth >= _DEEPEST:
            return
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            now = os.fstat(descriptor)
            if stat.S_ISDIR(now.st_mode):
                self.folder(descriptor, frozenset(), depth + 1)
            elif stat.S_ISREG(now.st_mode) and now.st_nlink == 1:
                self._give(descriptor, now)
        finally:
            os.close(descriptor)

    def _give(self, descriptor: int, status: os.stat_result) -> None:
        if status.st_uid == 0:
            os.fchown(descriptor, *self._owner)
            self.changed += 1
