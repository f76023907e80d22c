"""``python -m benchmarks.delta_child REPOSITORY KEY_FILE BACKUP_ID TARGET``: one delta restore."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datamanager.base.clock import SystemClock
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.engine.restore.delta import DeltaOptions, apply_delta, plan_delta
from datamanager.repository.keys import SlotSecret
from datamanager.repository.repository import Repository
from datamanager.storage.local import LocalStorage


def main(place: Path, key_file: Path, backup: str, target: Path) -> None:
    secret = SlotSecret.from_key_file(key_file.read_bytes())
    repository = Repository.open(LocalStorage(place), secret, SystemClock())
    manifest = repository.manifest(backup)
    with StopToken() as stop:
        plan = plan_delta(repository, manifest, DeltaOptions(target, confirm=manifest.cluster))
        done = apply_delta(repository, plan, stop, ignore)
    print(json.dumps({"fetched": done.bytes_fetched, "written": done.bytes_written, "removed": done.files_removed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
