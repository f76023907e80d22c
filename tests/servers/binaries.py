"""Where the programs of each PostgreSQL version are.

``DATAMANAGER_TEST_POSTGRES`` names a folder with one folder a version (``17.10/bin``); without it that folder is
``.cache/postgresql`` in the checkout, filled by ``tools/fetch_postgresql.py``. Debian's own 15 counts when installed.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
from pathlib import Path

from tests.servers.account import can_enter, make_folder, remove_folder

MAJORS = (14, 15, 16, 17, 18)

# Asked for by name in the tests: an older minor, and a build with other options (Debian's).
EXTRAS = ("17.10", "15-debian")

DEBIAN_FOLDER = Path("/usr/lib/postgresql/15")


class BinariesMissing(LookupError):
    """The programs of a version are not on this machine."""


def root_folder() -> Path:
    """Return the folder that holds one folder a version."""
    named = os.environ.get("DATAMANAGER_TEST_POSTGRES")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".cache" / "postgresql"


def _holds_server(folder: Path) -> bool:
    return any((folder / "bin" / name).is_file() for name in ("postgres", "postgres.exe"))


def _minor_of(folder: Path) -> int:
    _, _, minor = folder.name.partition(".")
    return int(minor) if minor.isdigit() else -1


def find(version: str) -> Path:
    """Return the folder of ``version`` that holds ``bin``: "17" is the newest minor at hand, "17.10" exactly that one.

    Raises: BinariesMissing.
    """
    if version == "15-debian":
        if _holds_server(DEBIAN_FOLDER):
            return DEBIAN_FOLDER
        raise BinariesMissing("find PostgreSQL 15-debian: the package postgresql-15 is not installed")
    root = root_folder()
    if re.fullmatch(r"\d+", version):
        for folder in sorted(root.glob(f"{version}.*"), key=_minor_of, reverse=True):
            if _holds_server(folder):
                return folder
        if version == "15" and _holds_server(DEBIAN_FOLDER):
            return DEBIAN_FOLDER
    elif _holds_server(root / version):
        return root / version
    raise BinariesMissing(f"find PostgreSQL {version}: not below {root}; run `make test`, which fetches it")


@functools.cache
def binaries(version: int | str) -> Path:
    """Return the ``bin`` folder of ``version``, which the servers' account can enter.

    A checkout below a private folder (root's home) cannot be entered by that account; then a copy is made, once a
    process, and removed when the process ends.

    Args: version - a major such as 18 or "18", a minor such as "17.10", or "15-debian".
    Raises: BinariesMissing.
    """
    folder = find(str(version))
    if can_enter(folder / "bin"):
        return folder / "bin"
    place = make_folder("pg")
    atexit.register(remove_folder, place)
    shutil.copytree(folder, place / folder.name, symlinks=True)
    return place / folder.name / "bin"


def major_of(version: int | str) -> int:
    """Return the major of a version as tests name it: 17 of "17.10", 15 of "15-debian"."""
    return int(re.split(r"[.-]", str(version))[0])


def select(specification: int | str) -> list[str]:
    """Return the versions that a mark names: 18, "17.10", "15-debian", "14-16", ">=17", "<17", or several with commas.

    Raises: ValueError for anything else.
    """
    chosen: list[str] = []
    for part in str(specification).replace(" ", "").split(","):
        comparison = re.fullmatch(r"(>=|<=|>|<)(\d+)", part)
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if comparison:
            sign, bound = comparison[1], int(comparison[2])
            low = bound + (sign == ">") if sign.startswith(">") else MAJORS[0]
            high = bound - (sign == "<") if sign.startswith("<") else MAJORS[-1]
            found = [str(major) for major in MAJORS if low <= major <= high]
        elif span:
            found = [str(major) for major in MAJORS if int(span[1]) <= major <= int(span[2])]
        elif part in EXTRAS or part in map(str, MAJORS):
            found = [part]
        else:
            found = []
        if not found:
            raise ValueError(f"read mark pg: {part!r} names no version of {MAJORS} or {EXTRAS}")
        chosen += [version for version in found if version not in chosen]
    return chosen
