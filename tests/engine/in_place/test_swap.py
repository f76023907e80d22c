"""Two directories change places by renames; whatever rename is the last one, the way back and the way on are found."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from datamanager.base.errors import IntegrityError
from datamanager.engine.in_place.journal import Journal, Phase, find_journal, read_journal, write_journal
from datamanager.engine.in_place.places import Places, inode_of, place_beside
from datamanager.engine.in_place.swap import Renames, entries_of, swap_of
from datamanager.system.exchange import exchange
from datamanager.system.processes import this_process

IDENTITY = "0a1b2c3d"
WAYS = ("exchange", "two renames", "entries")
Picture = dict[str, str]


class Killed(Exception):
    """Stands for the end of the process between two renames."""


class Scene:
    """A data directory and a new one beside it or in it, as far as renames are concerned."""

    def __init__(self, folder: Path, way: str) -> None:
        place = folder / "data"
        self.places = Places(place, whole=way != "entries")
        self.swapped: Callable[[Path, Path], bool] = exchange if way == "exchange" else lambda one, other: False
        self.incoming, self.outgoing = self.places.incoming(IDENTITY), self.places.outgoing(IDENTITY)
        self._make(place, "old", ("base", "pg_wal", "log"))
        if way == "entries":
            (place / "lost+found").mkdir()
        self._make(self.incoming, "new", ("base", "pg_wal", "orioledb_data"))
        self.old, self.new = self.picture(place), self.picture(self.incoming)
        self.journal = Journal(
            identity=IDENTITY,
            kind="restore",
            phase=Phase.EXCHANGING,
            process=this_process(),
            began=datetime.now(UTC),
            places=self.places,
            incoming=self.incoming,
            outgoing=self.outgoing,
            made=(),
            control={},
            running=False,
            start_seconds=1,
            old=inode_of(place),
            new=inode_of(self.incoming),
            old_entries=tuple(entries_of(place)),
        )
        self.steps = 0

    @staticmethod
    def _make(root: Path, text: str, folders: tuple[str, ...]) -> None:
        for name in (*folders, "global"):
            (root / name).mkdir(parents=True)
            (root / name / "file").write_text(text)
        (root / "PG_VERSION").write_text(text)
        (root / "global" / "pg_control").write_text(text)

    @staticmethod
    def picture(root: Path) -> Picture:
        """The cluster in a directory; what this program put into a mount point is none of it."""
        files: Picture = {}
        for name in entries_of(root):
            for folder, _, names in os.walk(root / name):
                files |= {str(Path(folder, one).relative_to(root)): Path(folder, one).read_text() for one in names}
            if (root / name).is_file():
                files[name] = (root / name).read_text()
        return files

    @property
    def in_force(self) -> Picture:
        return self.picture(self.places.data_directory)

    def run(self, action: str, kill: int) -> None:
        """``forward`` or ``back``, killed before its ``kill``-th rename; 0 for never."""
        self.steps = 0

        def told(text: str) -> None:
            self.steps += 1
            if self.steps == kill:
                raise Killed

        getattr(swap_of(self.journal, Renames(told, self.swapped)), action)()

    @property
    def done(self) -> bool:
        return swap_of(self.journal, Renames(lambda text: None, self.swapped)).done

    def starts(self) -> bool:
        """Whether PostgreSQL would take what lies there for a cluster."""
        return (self.places.data_directory / "global" / "pg_control").exists()


@pytest.fixture(params=WAYS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Scene]:
    count = iter(range(10_000))

    def make() -> Scene:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return Scene(folder, request.param)

    return make


def kills(fresh: Callable[[], Scene], action: str, prepare: Callable[[Scene], None] = lambda scene: None) -> range:
    """The numbers of the renames of an action."""
    scene = fresh()
    prepare(scene)
    scene.run(action, 0)
    return range(1, scene.steps + 1)


def test_an_exchange_puts_the_new_data_in_force_and_keeps_the_old_ones_whole(fresh: Callable[[], Scene]) -> None:
    scene = fresh()
    assert not scene.done
    scene.run("forward", 0)
    assert scene.done
    assert scene.in_force == scene.new
    assert scene.picture(scene.outgoing) == scene.old
    assert not scene.incoming.exists()
    scene.run("back", 0)
    assert not scene.done
    assert scene.in_force == scene.old
    assert scene.picture(scene.incoming) == scene.new
    assert not scene.outgoing.exists()


@pytest.mark.decision(11)
def test_an_exchange_killed_at_any_rename_is_completed_or_taken_back_and_nothing_between_starts(
    fresh: Callable[[], Scene],
) -> None:
    for kill in kills(fresh, "forward"):
        scene = fresh()
        with pytest.raises(Killed):
            scene.run("forward", kill)
        if scene.starts():
            assert scene.in_force in (scene.old, scene.new)
        if scene.done:
            scene.run("finish", 0)
            assert (scene.in_force, scene.picture(scene.outgoing)) == (scene.new, scene.old)
        else:
            scene.run("back", 0)
            assert (scene.in_force, scene.picture(scene.incoming)) == (scene.old, scene.new)


@pytest.mark.decision(11)
def test_the_way_back_may_itself_be_killed_at_any_rename(fresh: Callable[[], Scene]) -> None:
    forward = [0, *kills(fresh, "forward")[::3]]
    for first in forward:
        for second in kills(fresh, "back", lambda scene: scene.run("forward", 0)):
            scene = fresh()
            for action, kill in (("forward", first), ("back", second)):
                try:
                    scene.run(action, kill)
                except Killed:
                    if scene.starts():
                        assert scene.in_force in (scene.old, scene.new)
            scene.run("back", 0)
            assert scene.in_force == scene.old, (first, second)
            assert scene.picture(scene.incoming) == scene.new
            assert not scene.outgoing.exists()


def test_what_a_server_that_did_not_start_left_behind_goes_away_with_the_new_data(fresh: Callable[[], Scene]) -> None:
    scene = fresh()
    scene.run("forward", 0)
    place = scene.places.data_directory
    (place / "postmaster.opts").write_text("new")
    (place / "log").mkdir(exist_ok=True)
    (place / "log" / "server").write_text("new")
    scene.run("back", 0)
    assert scene.in_force == scene.old
    assert scene.picture(scene.incoming) == {**scene.new, "postmaster.opts": "new", "log/server": "new"}


def test_a_data_directory_that_is_neither_the_old_nor_the_new_one_is_left_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "exchange")
    scene.places.data_directory.rename(tmp_path / "somewhere else")
    scene._make(scene.places.data_directory, "a person's", ("base",))
    with pytest.raises(IntegrityError, match="neither the old data nor the new"):
        scene.run("back", 0)
    assert set(scene.in_force.values()) == {"a person's"}


def test_a_journal_is_read_as_it_was_written_and_found_beside_or_in_the_data_directory(
    fresh: Callable[[], Scene],
) -> None:
    scene = fresh()
    assert find_journal(scene.places.data_directory) is None
    written = replace(scene.journal, control={"kind": "pg_ctl"}, phase=Phase.RETURNING)
    write_journal(written)
    found = find_journal(scene.places.data_directory)
    assert found == scene.places.journal
    assert read_journal(scene.places.journal) == written
    assert scene.places.journal.stat().st_mode & 0o777 == 0o600


def test_names_of_new_directories_do_not_grow_from_restore_to_restore(tmp_path: Path) -> None:
    first = place_beside(tmp_path / "space", "00000001")
    first.mkdir()
    assert first.name == "space.datamanager-00000001"
    assert place_beside(first, "00000002") == tmp_path / "space.datamanager-00000002"
    nested = tmp_path / "datamanager-00000001"
    nested.mkdir()
    assert place_beside(nested, "00000002") == tmp_path / "datamanager-00000002"
