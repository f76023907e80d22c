"""Names of WAL files, and where timelines come from."""

from __future__ import annotations

import pytest

from datamanager.base.errors import IntegrityError
from datamanager.base.units import MIB, Lsn
from datamanager.postgres.wal.history import Span, TimelineHistory
from datamanager.postgres.wal.names import history_name, segment_name, segment_place, segment_start


@pytest.mark.parametrize(
    ("timeline", "at", "size", "name"),
    [
        (1, "0/1000000", 16 * MIB, "000000010000000000000001"),
        (2, "1/FFFFFFFF", 16 * MIB, "0000000200000001000000FF"),
        (0x1F, "A/3C000000", 64 * MIB, "0000001F0000000A0000000F"),
        (1, "3/C0000000", 1024 * MIB, "000000010000000300000003"),
        (1, "3/FFF00000", MIB, "000000010000000300000FFF"),
    ],
)
def test_a_segment_is_named_as_the_server_names_it(timeline: int, at: str, size: int, name: str) -> None:
    assert segment_name(timeline, Lsn.parse(at), size) == name
    assert segment_place(name, size) == (timeline, segment_start(Lsn.parse(at), size))


@pytest.mark.parametrize("name", ["0000000100000000000000", "00000001000000000000010G", "000000010000000000000100"])
def test_what_no_server_would_write_is_no_segment(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        segment_place(name, 16 * MIB)


def test_a_history_tells_which_timeline_wrote_which_byte() -> None:
    text = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000060\tbefore 2026-11-23 10:00:00+00\n"
    history = TimelineHistory.parse(4, text)
    three, five = Lsn.parse("0/3000000"), Lsn.parse("0/5000060")
    assert history.spans() == [Span(1, Lsn(0), three), Span(2, three, five), Span(4, five, None)]
    assert [history.timeline_at(at) for at in (0, three - 1, three, five - 1, five, five + 1)] == [1, 1, 2, 2, 4, 4]
    assert history.begins == five
    assert TimelineHistory.parse(1, b"").spans() == [Span(1, Lsn(0), None)]
    assert history_name(0x2A) == "0000002A.history"


@pytest.mark.parametrize(
    "text", [b"1\n", b"x\t0/0\tno\n", b"2\t0/3\ta\n1\t0/4\tb\n", b"1\t0/4\ta\n2\t0/3\tb\n", b"4\t0/4\t"]
)
def test_a_damaged_history_is_refused(text: bytes) -> None:
    with pytest.raises(IntegrityError):
        TimelineHistory.parse(4, text)
