"""What a person has before them: a command line, a repository called ``usb``, a server called ``office``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.disaster.command import CommandLine
from tests.disaster.conftest import Scene


@dataclass(frozen=True)
class Desk:
    """A command line whose repository ``usb`` in ``drive`` holds one backup of ``office``."""

    command: CommandLine
    drive: Path
    backup: str
    scene: Scene

    def restore(self, folder: Path) -> list[str | Path]:
        """The words that restore the newest backup into ``folder``."""
        mapped = f"{self.scene.tablespace}={folder / 'space'}"
        return ["restore", "latest", "--repo", "usb", "--target", folder / "new", "--tablespace-map", mapped]
