"""Test restores of real backups of real servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from datamanager.base.clock import SystemClock
from datamanager.base.pipeline import StopToken
from datamanager.drills.plan import DrillOptions, DrillPlan, plan_drill
from datamanager.drills.run import DrillResult, run_drill
from datamanager.repository.manifest import Manifest
from tests.engine.conftest import Heard, Works, account
from tests.servers import binaries, hand_over


@dataclass
class Drills:
    """Drills on backups of ``works``, everything below one folder that the servers' account may enter."""

    works: Works
    version: str
    heard: Heard = field(default_factory=Heard)

    @property
    def scratch(self) -> Path:
        return self.works.folder / "scratch"

    @property
    def records(self) -> Path:
        return self.works.folder / "records"

    def options(self, **changes: object) -> DrillOptions:
        for folder in (self.scratch, self.records):
            folder.mkdir(exist_ok=True)
        hand_over(self.scratch)
        made = DrillOptions(self.scratch, self.records, account(), install_path=binaries(self.version))
        return replace(made, **changes)  # type: ignore[arg-type]

    def plan(self, manifest: Manifest, **changes: object) -> DrillPlan:
        return plan_drill(self.works.reopened(), manifest, self.options(**changes))

    def run(self, manifest: Manifest, stop: StopToken | None = None, **changes: object) -> DrillResult:
        plan = self.plan(manifest, **changes)
        return run_drill(self.works.reopened(), plan, SystemClock(), stop or self.works.stop, self.heard)

    def assert_nothing_left(self) -> None:
        """No folder, no record, no socket, no process, no lease."""
        assert list(self.scratch.iterdir()) == []
        assert list(self.records.iterdir()) == []
        assert list(self.works.storage.list("leases/")) == []
        assert processes_below(self.works.folder) == []


def processes_below(folder: Path) -> list[str]:
    """Servers and their programs that work below a folder."""
    found = []
    for process in psutil.process_iter(["name"]):
        if str(process.info["name"]).startswith(("postgres", "pg_")):
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()).is_relative_to(folder) or str(folder) in " ".join(process.cmdline()):
                    found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def works(open_folder: Path) -> Iterator[Works]:
    """A repository in a folder that the servers' account may enter."""
    made = Works(open_folder)
    yield made
    made.close()


@pytest.fixture
def drills(works: Works, pg_version: str) -> Drills:
    """Drills with the programs of this version."""
    return Drills(works, pg_version)
