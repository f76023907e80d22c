"""The findings of a readiness check as a run takes them: refused, told, or written down."""

from __future__ import annotations

import pytest

from datamanager.app.readiness import NotReady, refusal, require
from datamanager.base.errors import IntegrityError, ServerMismatch, TargetTooSmall
from datamanager.base.events import Event, Touched, Warned
from datamanager.engine.readiness.finding import blocking, fine, unknown, warning, worst_first

LOCALE = blocking("locale", "This machine lacks the locale xx_XX of clinic.", "Generate it.", ServerMismatch)
DAMAGE = blocking("damage", "Verifying found damage.", "Run `datamanager repo heal`.", IntegrityError)
SORT = warning("collation", "Text sorts differently here for database clinic (libc 2.31, here 2.36).", "Run `REINDEX`.")
CLOSED = unknown("extensions", "The backup does not say which extensions its databases use.", "Compare the packages.")
WELL = fine("key", "The key opens the repository.")


def test_a_run_is_refused_for_the_first_thing_in_its_way_and_told_where_the_others_are_shown() -> None:
    heard: list[Event] = []
    with pytest.raises(ServerMismatch) as refused:
        require(worst_first([WELL, SORT, LOCALE, DAMAGE]), heard.append)
    assert refused.value.message == "restore backup: this machine lacks the locale xx_XX of clinic"
    assert refused.value.hint == "Generate it. 1 more in the way: --dry-run shows everything."
    assert heard == []
    alone = refusal([LOCALE, SORT])
    assert alone is not None
    assert alone.hint == "Generate it."
    small = NotReady("backup x", [DAMAGE, SORT], TargetTooSmall("restore backup: too small", hint="Make room."))
    assert small.error.hint == "Make room."


def test_what_will_be_amiss_is_told_with_its_remedy_and_what_nobody_can_tell_is_written_down() -> None:
    heard: list[Event] = []
    require([SORT, CLOSED, WELL], heard.append)
    assert heard == [
        Warned("text sorts differently here for database clinic (libc 2.31, here 2.36); run `REINDEX`"),
        Touched("the backup does not say which extensions its databases use"),
    ]
    require([SORT], heard.append, told=["collation"])
    assert len(heard) == 2
    assert refusal([SORT, CLOSED, WELL]) is None
