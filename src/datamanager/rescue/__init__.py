"""What lies beside the sealed bytes for the worst day: rescue.py, README.txt, the wheels, and the printed kit.

``rescue.py`` is a program of its own: one file, nothing but the standard library, restored from by people who have no
installation of ours. The copy that goes into a repository names the SHA-256 of the wheels that go with it, so that the
one SHA-256 on the printed kit vouches for everything that will run. The kit is in ``rescue.kit``, which loads the maker
of QR codes; every backup refreshes the other files, and must not wait for that.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from datamanager.base.errors import DataManagerError
from datamanager.rescue.readme import ServerNeeds, readme_text

__all__ = [
    "ServerNeeds",
    "bundled_wheels",
    "is_of_this_release",
    "readme_text",
    "rescue_script",
    "script_sha256",
]

_FOLDER = Path(__file__).parent
_EMPTY_TABLE = b"WHEEL_SHA256: dict[str, str] = {}\n"
_TABLE = re.compile(rb'WHEEL_SHA256: dict\[str, str\] = \{\n((?:    "[^"\n]+": "[0-9a-f]{64}",\n)*)\}\n')


def bundled_wheels(folder: Path | None = None) -> list[Path]:
    """The wheels that a repository gets beside rescue.py, sorted by name; none where this installation has none.

    Args: folder - where they are, if not in this package.
    """
    return sorted((folder or _FOLDER / "wheels").glob("*.whl"))


def rescue_script(wheels: list[Path] | None = None) -> bytes:
    """rescue.py as it goes into a repository: it knows the SHA-256 of each of ``wheels`` (this installation's own).

    The same wheels give the same bytes. Raises: DataManagerError, when this installation is damaged; OSError.
    """
    source = _source()
    lines = [b"WHEEL_SHA256: dict[str, str] = {\n"]
    for wheel in sorted(bundled_wheels() if wheels is None else wheels, key=lambda one: one.name):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f'    "{wheel.name}": "{digest}",\n'.encode())
    return source.replace(_EMPTY_TABLE, b"".join([*lines, b"}\n"])) if len(lines) > 1 else source


def is_of_this_release(script: bytes) -> bool:
    """Whether ``script`` is this installation's rescue.py with the wheels it has now, their digests not compared.

    For every backup, which shall not read 30 MB of wheels each time; ``repo check`` compares everything.
    Raises: as ``rescue_script``.
    """
    found = _TABLE.search(script)
    if found is None:
        return not bundled_wheels() and script == _source()
    names = [line.split(b'"')[1].decode(errors="replace") for line in found[1].splitlines()]
    rest = script[: found.start()] + _EMPTY_TABLE + script[found.end() :]
    return names == [wheel.name for wheel in bundled_wheels()] and rest == _source()


def _source() -> bytes:
    """rescue.py with an empty table. Raises: as ``rescue_script``."""
    source = _FOLDER.joinpath("rescue.py").read_bytes().replace(b"\r\n", b"\n")
    if source.count(_EMPTY_TABLE) != 1:
        raise DataManagerError(
            "write rescue.py: this installation was changed", hint="Install DataManager again, then repeat the command."
        )
    return source


def script_sha256(wheels: list[Path] | None = None) -> str:
    """SHA-256 of ``rescue_script(wheels)``, for the printed kit."""
    return hashlib.sha256(rescue_script(wheels)).hexdigest()
