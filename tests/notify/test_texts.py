"""The texts as people read them, word for word (``texts/*.txt``), and what no name can do to them.

``python -m tests.notify.test_texts`` writes them anew.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from datamanager.notify import digest, rules
from datamanager.notify.message import Message, one_line
from datamanager.state.model import JobState, KnownCluster, Proof
from tests.notify.parts import NOW, OFFICE
from tests.notify.test_rules import NO_SCHEDULE, OVERDUE, SERVICE, Office

FOLDER = Path(__file__).resolve().parent / "texts"


def texts() -> dict[str, Message]:
    """One of each kind."""
    made: dict[str, Message] = {}
    office = Office()
    cause = "the drive of backup location usb is not there"
    failed = office.job(
        cause=cause,
        effect="There is no new backup of clinic.",
        next_step="Plug the drive in and run `datamanager backup run clinic`.",
    )
    (made["failure"],) = office.look(failed)
    office.later(days=1)
    (made["failure again"],) = office.look()
    (made["recovered"],) = office.look(office.job(JobState.DONE))
    for name, finding in (("overdue", OVERDUE), ("not protected", NO_SCHEDULE), ("urgent", SERVICE)):
        office = Office()
        office.look(found=[finding])
        office.later(minutes=15)
        office.look(found=[finding])
        made[name] = office.messages[0]
    office = Office()
    runs = [office.job(), *(office.job(JobState.DONE) for _ in range(6)), office.job(JobState.WARNED, subject="lab")]
    runs.append(office.job(JobState.DONE, kind="repo verify", subject="usb"))
    proof = Proof("20261120T060000Z-1a2b3c4d", "clinic", "1", NOW - timedelta(days=3), NOW, True, 60, 30)
    clusters = [
        KnownCluster("clinic", size_bytes=13_300_000_000, databases=("billing", "records"), newest_backup_time=NOW),
        KnownCluster("lab", databases=("results",)),
    ]
    office.look(office.job(subject="lab", kind="drill run"))
    period = digest.Period(
        NOW - timedelta(days=7), NOW, runs, [proof], list(office.alerts.values()), clusters,
        ["Part of what is stored on backup location usb is known to be damaged."],
        "Your records are safe. Last copy today 1:04 AM, proven by a test restore 3 days ago.",
    )  # fmt: skip
    made["digest"] = digest.summary(OFFICE, period)
    made["digest of nothing"] = digest.summary(
        replace(OFFICE, organization=""), digest.Period(NOW, NOW, (), (), (), ())
    )
    return made


def written(message: Message) -> str:
    return f"{message.title}\n\n{message.body}"


@pytest.mark.parametrize("name", sorted(texts()))
def test_a_text_reads_as_agreed(name: str) -> None:
    assert written(texts()[name]) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(texts()))
def test_every_text_names_the_office_the_computer_and_one_next_step(name: str) -> None:
    text = written(texts()[name])
    assert "front-desk" in text
    assert "Dr. Miller" in text or name == "digest of nothing"
    assert text.count("WHAT TO DO NEXT") == 1
    assert "`" not in text


@pytest.mark.parametrize("evil", ["a\r\nBcc: x", "a\x0bb", "a\u2028b", "a\u202egnp.exe", "\ud800", "x" * 5000])
def test_no_name_can_write_lines_of_its_own(evil: str) -> None:
    sender = replace(OFFICE, organization=evil, server=evil, databases={"clinic": (evil, "billing")})
    office = Office()
    trouble = rules.failure(office.job(cause=evil), sender)
    told = rules.decide([office.job(cause=evil)], None, rules.Known((), {}, {"clinic"}), sender, NOW).messages[0]
    assert "\n" not in told.title
    assert len(told.title) <= 200
    plain = rules.decide([office.job(cause="x")], None, rules.Known((), {}, {"clinic"}), OFFICE, NOW).messages[0]
    assert told.body.count("\n") == plain.body.count("\n")
    assert all(len(line) <= 1100 for line in told.body.splitlines())
    assert one_line(trouble.said.title) == trouble.said.title
    told.body.encode()


if __name__ == "__main__":
    for name, message in texts().items():
        (FOLDER / f"{name}.txt").write_text(written(message), encoding="utf-8")
