"""What lies beside the sealed bytes for the worst day: rescue.py, README.txt, the wheels, and the printed kit.

``rescue.py`` is a program of its own: one file, nothing but the standard library, restored from by people who have no
installation of ours. The copy that goes into a repository names the SHA-256 of the wheels that go with it, so that the
one SHA-256 on the printed kit vouches for everything that will run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from datamanager.base.errors import DataManagerError
from datamanager.rescue.kit import KitPage, recovery_kit
from datamanager.rescue.readme import ServerNeeds, readme_text

__all__ = [
    "KitPage",
    "ServerNeeds",
    "bundled_wheels",
    "readme_text",
    "recovery_kit",
    "rescue_script",
    "script_sha256",
]

_FOLDER = Path(__file__).parent
_EMPTY_TABLE = b"WHEEL_SHA256: dict[str, str] = {}\n"


def bundled_wheels(folder: Path | None = None) -> list[Path]:
    """The wheels that a repository gets beside rescue.py, sorted by name; none where this installation has none.

    Args: folder - where they are, if not in this package.
    """
    return sorted((folder or _FOLDER / "wheels").glob("*.whl"))


def rescue_script(wheels: list[Path] | None = None) -> bytes:
    """rescue.py as it goes into a repository: it knows the SHA-256 of each of ``wheels`` (this installation's own).

    The same wheels give the same bytes. Raises: DataManagerError, when this installation is damaged; OSError.
    """
    source = _FOLDER.joinpath("rescue.py").read_bytes().replace(b"\r\n", b"\n")
    if source.count(_EMPTY_TABLE) != 1:
        raise DataManagerError(
            "write rescue.py: this installation was changed", hint="Install DataManager again, then repeat the command."
        )
    lines = [b"WHEEL_SHA256: dict[str, str] = {\n"]
    for wheel in sorted(bundled_wheels() if wheels is None else wheels, key=lambda one: one.name):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f'    "{wheel.name}": "{digest}",\n'.encode())
    return source.replace(_EMPTY_TABLE, b"".join([*lines, b"}\n"])) if len(lines) > 1 else source


def script_sha256(wheels: list[Path] | None = None) -> str:
    """SHA-256 of ``rescue_script(wheels)``, for the printed kit."""
    return hashlib.sha256(rescue_script(wheels)).hexdigest()
