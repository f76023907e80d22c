"""What a recovery replays, written down and read again, and the histories that its server finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.base.errors import IntegrityError, WalMissing
from datamanager.base.units import Lsn
from datamanager.engine.recovery.plan import NeededWal
from datamanager.engine.recovery.replay import Replay, own_end, replay_from_json, replay_to_json
from datamanager.engine.recovery.segments import TAKEN
from datamanager.postgres.wal.history import TimelineHistory
from datamanager.repository.format import WAL_FOLDER, folders
from datamanager.repository.wal.archive import WalArchive
from datamanager.storage.local import LocalStorage
from tests.engine.conftest import Works
from tests.engine.recovery.moments import SEGMENT
from tests.repository.test_manifest import MANIFEST

TEXT = b"1\t0/1800000\tno recovery target specified\n"


def test_it_is_read_again_as_it_was_and_a_line_that_is_gone_is_told(open_folder: Path) -> None:
    works = Works(open_folder, LocalStorage.create(open_folder / "repository", folders(), [WAL_FOLDER]))
    archive = WalArchive(works.repository, 7)
    first = archive.begin_line(1, SEGMENT, b"", "tests", "18.1")
    second = archive.begin_line(2, SEGMENT, TEXT, "tests", "18.1")
    needs = (
        NeededWal(first, Lsn(0x1700000), Lsn(0x1800000), 1),
        NeededWal(second, Lsn(0x1800000), Lsn(0x1900123), 2),
    )
    replay = Replay(TimelineHistory.parse(2, TEXT), Lsn(0x19000F8), needs, SEGMENT, (first, second))
    value = json.loads(json.dumps(replay_to_json(replay)))
    assert replay_from_json(value, (first, second)) == replay
    with pytest.raises(WalMissing, match=first.id):
        replay_from_json(value, (second,))
    with pytest.raises(IntegrityError, match="malformed"):
        replay_from_json({**value, "target": "nowhere"}, (first, second))
    alone = own_end(MANIFEST, {})
    assert replay_from_json(replay_to_json(alone), ()) == alone
    works.close()


@pytest.mark.decision(12)
def test_a_backup_as_it_is_brings_its_own_histories_and_takes_no_number_that_is_taken() -> None:
    known = {"00000002.history": TAKEN, "00000003.history": TEXT, "00000005.history": TAKEN}
    alone = own_end(replace(MANIFEST, timeline=3), known)
    assert alone.history_files() == {
        "00000003.history": TEXT,
        "00000004.history": TAKEN,
        "00000005.history": TAKEN,
    }
