"""Whose work this is: the account that runs this process, and who signed in."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import psutil
else:
    import pwd


def account_name() -> str:
    """The account that runs this; its number where it has no name."""
    if sys.platform == "win32":
        try:
            return psutil.Process().username()
        except psutil.Error:
            return "unknown account"
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def who() -> str:
    """The account that runs this; on Linux also who signed in, when that was another one (``alice as root``)."""
    account, person = account_name(), _signed_in()
    return f"{person} as {account}" if person and person != account else account


def _signed_in() -> str:
    """Who signed in to the session, which neither su nor sudo changes. Source: pam_loginuid(8)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError, KeyError):
            number = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
            return pwd.getpwuid(number).pw_name
    return ""
