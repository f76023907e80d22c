"""A server that writes nothing for a while is restored all the same: its receiver knows that nothing is missing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from datamanager.app.wal_beat import WalFiles, read_wal_beat
from datamanager.config.home import Home
from tests.cli.test_in_place_and_the_archive import Office, archived, office
from tests.cli.test_wal import wait_until
from tests.conftest import NewServer

__all__ = ["archived", "office"]


def known_until(office: Office) -> datetime | None:
    """Until when the receiver of this computer says that it has everything."""
    beat = read_wal_beat(WalFiles.of(Home(office.installation.home, office.installation.home), "office").beat)
    return beat.progress.complete_time if beat is not None else None


@pytest.mark.pg("15,18")
@pytest.mark.decision(14)
def test_a_moment_of_a_quiet_night_is_restored_without_a_doubt(
    archived: Office, new_server: NewServer, open_folder: Path
) -> None:
    office, run = archived, archived.installation
    office.write(1)
    run.ok("backup", "run", "office")
    last = office.write(2, 3)
    office.wait_until_archived()
    quiet = last + timedelta(seconds=3)
    words = ("restore", "latest", "--to-time", quiet.isoformat(), "--target", open_folder / "restored")
    too_soon = run.run(*words)
    assert too_soon.code == 53  # nobody can know yet that nothing more was written
    assert "the archive tells only until" in too_soon.errors
    wait_until(lambda: (known_until(office) or last) > quiet, 40, "the server has said that it wrote nothing")
    done = run.ok(*words)
    assert "the last commit included is of 20" in done.out
    restored = new_server.adopt(open_folder / "restored", office.server.version, own=False)
    assert restored.value("select array_agg(n order by n) from numbered") == [1, 2, 3]


@pytest.mark.pg("18")
@pytest.mark.decision(14)
def test_what_a_receiver_knew_of_a_quiet_night_holds_after_its_end(
    archived: Office, new_server: NewServer, open_folder: Path
) -> None:
    office, run = archived, archived.installation
    run.ok("backup", "run", "office")
    last = office.write(1)
    office.wait_until_archived()
    quiet = last + timedelta(seconds=2)
    wait_until(lambda: (known_until(office) or last) > quiet, 40, "the server has said that it wrote nothing")
    run.ok("wal", "stop", "office")
    later = office.write(2)  # nobody archives it
    words = ("restore", "latest", "--target", open_folder / "restored")
    assert run.run(*words, "--to-time", (later + timedelta(seconds=1)).isoformat()).code == 53
    run.ok(*words, "--to-time", quiet.isoformat())
    restored = new_server.adopt(open_folder / "restored", office.server.version, own=False)
    assert restored.value("select array_agg(n order by n) from numbered") == [1]
