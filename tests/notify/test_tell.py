"""The one call a round, with a real state, a real mail server and a real webhook: who gets what, and how often."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datamanager.app.context import Context
from datamanager.app.notifications import Told, tell
from datamanager.base.events import ignore
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home
from datamanager.config.secret_files import write_secret_file
from datamanager.config.state_url import sqlite_url
from datamanager.notify.courier import Courier
from datamanager.notify.outbox import NAME, Outbox, from_text
from datamanager.state.database import State, open_state
from datamanager.state.finding import Finding, Severity
from datamanager.state.model import Job, JobState, KnownCluster
from tests.notify.parts import (
    PASSWORD,
    USER,
    Certificates,
    MailServer,
    WebService,
    closed_port,
    mail_server,
    silent_server,
)
from tests.state.parts import MovedClock, done

pytestmark = [
    pytest.mark.filterwarnings("ignore:'imghdr' is deprecated"),
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS"),
]

CONFIG = """\
[notify]
organization = "Dr. Miller"
server = "front-desk"
digest = "none"
zone = "America/New_York"

[clusters.clinic]
conninfo = "host=localhost"
"""
SERVICE = Finding("service:HL7", Severity.URGENT, "", "Service HL7 did not start again.", "net start HL7")


@dataclass
class Office:
    """A home with a state that is opened anew at each restart."""

    home: Home
    clock: MovedClock
    state: State
    stop: StopToken
    courier: Courier = field(default_factory=Courier)

    @property
    def box(self) -> Outbox:
        return from_text(self.state.alerts.value(NAME))

    def configure(self, text: str) -> None:
        self.home.config_file.write_text(text, encoding="utf-8")

    def add(self, name: str, secret: str, **values: Any) -> None:
        lines = [f"{key} = {value!r}".replace("True", "true") for key, value in values.items()]
        text = self.home.config_file.read_text(encoding="utf-8")
        self.configure("\n".join([text, f"[channels.{name}]", *lines, ""]))
        write_secret_file(self.home.channel_secret(name), secret.encode(), "secret")

    def add_mail(self, mail: MailServer, certificates: Certificates, **values: Any) -> None:
        given = {
            "kind": "smtp", "host": mail.host, "port": mail.port, "user": USER, "sender": USER,
            "recipients": ["manager@example.org"], "ca_file": str(certificates.authority), "timeout_seconds": 5,
        }  # fmt: skip
        self.add("office", PASSWORD, **{**given, **values})

    def add_web(self, web: WebService, **values: Any) -> None:
        self.add("phone", web.json_url, **{"kind": "url", "timeout_seconds": 5, **values})

    def tell(self, *, found: Sequence[Finding] | None = None, wait: float = 10.0, verdict: str = "") -> Told:
        context = Context(self.home, self.clock, self.stop, ignore)
        return tell(context, self.state, self.courier, findings=found, verdict=verdict, wait_seconds=wait)

    def ran(self, state: JobState = JobState.FAILED, **values: Any) -> Job:
        job = replace(done(self.clock.now() - timedelta(minutes=2)), state=state, **values)
        self.state.jobs.save(job)
        return job

    def restart(self) -> None:
        self.state.close()
        self.state = open_state(sqlite_url(self.home.state_file), clock=self.clock)
        self.courier = Courier()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    home = Home(tmp_path, tmp_path)
    home.keys.mkdir()
    clock = MovedClock()
    with StopToken() as stop:
        made = Office(home, clock, open_state(sqlite_url(home.state_file), clock=clock), stop)
        made.configure(CONFIG)
        made.state.known.put_cluster(KnownCluster("clinic", databases=("billing", "records")))
        made.tell()
        yield made
        made.state.close()


def test_a_failure_and_its_end_reach_mail_and_webhook_once(
    office: Office, mail: MailServer, certificates: Certificates, web: WebService
) -> None:
    office.add_mail(mail, certificates)
    office.add_web(web)
    office.ran(cause="the drive is not there")
    for _ in range(20):
        office.tell()
        office.clock.move(seconds=1)
    assert mail.received.subjects == web.titles == ["[Dr. Miller] The backup of clinic failed (front-desk)"]
    text = mail.received.mails[0].get_content()
    assert "the drive is not there" in text
    assert "Databases: billing, records" in text
    office.clock.move(hours=2)
    office.ran(JobState.DONE)
    for _ in range(20):
        office.tell()
        office.clock.move(seconds=1)
    assert (
        web.titles[1:] == mail.received.subjects[1:] == ["[Dr. Miller] The backup of clinic is good again (front-desk)"]
    )
    assert (office.state.alerts.open(), office.box.waiting) == ([], ())


def test_a_restart_between_any_two_rounds_tells_nothing_twice(office: Office, web: WebService) -> None:
    office.add_web(web)
    office.ran()
    for _ in range(8):
        office.tell()
        office.restart()
        office.clock.move(seconds=30)
    assert len(web.posted) == 1


def test_what_ended_before_the_first_look_is_no_news_and_a_long_silence_hides_nothing(
    office: Office, web: WebService
) -> None:
    office.add_web(web)
    office.clock.move(days=9)
    for _ in range(150):
        office.ran(JobState.DONE)
        office.clock.move(minutes=5)
    office.ran(request=replace(done(office.clock.now()).request, subject="lab"), id="20260101T000000Z-000001")
    office.tell()
    assert web.titles == ["[Dr. Miller] The backup of lab failed (front-desk)"]


def test_overdue_goes_only_to_whom_it_concerns(
    office: Office, mail: MailServer, certificates: Certificates, web: WebService
) -> None:
    office.add_mail(mail, certificates, events=["failure", "digest"])
    office.add_web(web, events="overdue, recovered")
    overdue = Finding("overdue:clinic", Severity.NOT_PROTECTED, "clinic", "A planned backup is missing.", "x")
    for _ in range(30):
        office.tell(found=[overdue])
        office.clock.move(minutes=1)
    office.tell(found=[])
    assert web.titles == [
        "[Dr. Miller] A backup is overdue: clinic (front-desk)", "[Dr. Miller] A trouble is over (front-desk)"
    ]  # fmt: skip
    assert mail.received.mails == []


@pytest.mark.requirement("R101", missing="the services themselves are shown by tests of the jobs")
def test_urgent_reaches_every_channel_each_hour_until_it_is_acknowledged(
    office: Office, mail: MailServer, certificates: Certificates, web: WebService
) -> None:
    office.add_mail(mail, certificates, events=["digest"])
    office.add_web(web, events="recovered")
    for _ in range(125):
        office.tell(found=[SERVICE])
        office.clock.move(minutes=1)
    assert len(mail.received.mails) == len(web.posted) == 3  # requirement R101
    assert mail.received.mails[0]["Importance"] == "high"
    office.state.alerts.acknowledge("found:service:HL7", "anna")
    for _ in range(125):
        office.tell(found=[SERVICE])
        office.clock.move(minutes=1)
    assert len(mail.received.mails) == len(web.posted) == 3


def test_looking_every_few_seconds_for_an_hour_sends_each_message_once(office: Office, web: WebService) -> None:
    office.add_web(web)
    office.ran()
    begun = time.monotonic()
    for _ in range(700):
        office.tell(found=[SERVICE], wait=0)
        office.clock.move(seconds=6)
    spent = time.monotonic() - begun
    office.tell()
    assert sorted(web.titles) == [
        "[Dr. Miller] Needs someone now: Service HL7 did not start again (front-desk)",
        "[Dr. Miller] Reminder: needs someone now: Service HL7 did not start again (front-desk)",
        "[Dr. Miller] The backup of clinic failed (front-desk)",
    ]
    assert spent / 700 < 0.05


@pytest.mark.parametrize("trouble", ["dead", "hangs", "trickles", "wrong password", "full", "no secret"])
def test_whatever_a_channel_suffers_the_caller_neither_fails_nor_waits_and_it_is_recorded(
    office: Office, mail: MailServer, certificates: Certificates, web: WebService, trouble: str
) -> None:
    office.add_web(web)
    with silent_server(trickles=trouble == "trickles") as port:
        ports = {"dead": closed_port(), "hangs": port, "trickles": port}
        office.add_mail(mail, certificates, port=ports.get(trouble, mail.port), timeout_seconds=1)
        if trouble == "full":
            mail.received.refused = {"manager@example.org": "552 5.2.2 over quota"}
        secret = office.home.channel_secret("office")
        if trouble == "wrong password":
            secret.write_text("hunter2-hunter2\n")
        if trouble == "no secret":
            secret.unlink()
        office.ran()
        begun = time.monotonic()
        office.tell(wait=0)
        assert time.monotonic() - begun < 0.5
        told = office.tell(wait=5)
        assert time.monotonic() - begun < 4
    health = office.box.health("office")
    expected = {
        "dead": "connection refused", "hangs": "no", "trickles": "no answer within 1 s", "full": "the mailbox is full",
        "wrong password": "does not accept this user and password", "no secret": "is not there",
    }  # fmt: skip
    assert expected[trouble] in health.trouble
    assert health.failures == 1
    assert [one.channel for one in office.box.waiting] == ["office"]
    assert told.waiting == 1
    assert "hunter2" not in (office.state.alerts.value(NAME) or "")
    assert len(web.posted) == 1


def test_what_could_not_be_sent_waits_and_is_sent_later_once(
    office: Office, certificates: Certificates, mail: MailServer
) -> None:
    office.add_mail(mail, certificates)
    config = office.home.config_file.read_text(encoding="utf-8")
    office.configure(config.replace(f"port = {mail.port}", f"port = {closed_port()}"))
    office.ran()
    for _ in range(200):
        office.tell()
        office.clock.move(minutes=1)
    assert 5 < office.box.health("office").failures < 20
    office.restart()
    office.configure(config)
    for _ in range(60):
        office.tell()
        office.clock.move(minutes=1)
    assert len(mail.received.mails) == 1
    assert office.box.health("office").trouble == ""


def test_a_message_is_given_up_after_a_day(office: Office, mail: MailServer, certificates: Certificates) -> None:
    office.add_mail(mail, certificates, port=closed_port(), events=["recovered"])
    office.ran()
    office.tell()
    office.clock.move(hours=2)
    office.ran(JobState.DONE)
    for _ in range(50):
        office.tell()
        office.clock.move(minutes=30)
    assert (office.box.waiting, office.box.health("office").given_up) == ((), 1)


def test_a_mailbox_that_is_full_gets_its_message_later_and_the_others_get_theirs_once(
    office: Office, mail: MailServer, certificates: Certificates
) -> None:
    office.add_mail(mail, certificates, recipients=["manager@example.org", "owner@example.org"])
    mail.received.refused = {"owner@example.org": "452 4.2.2 over quota"}
    office.ran()
    for _ in range(10):
        office.tell()
        office.clock.move(minutes=1)
    assert "owner@example.org: the mailbox is full" in office.box.health("office").trouble
    mail.received.refused = {}
    for _ in range(60):
        office.tell()
        office.clock.move(minutes=1)
    assert mail.received.recipients == [["manager@example.org"], ["owner@example.org"]]


def digest_config(office: Office, pace: str, hour: int) -> None:
    text = office.home.config_file.read_text(encoding="utf-8")
    office.configure(text.replace('digest = "none"', f'digest = "{pace}"\ndigest_hour = {hour}'))


@pytest.mark.parametrize("hour", [2, 8])
def test_the_daily_summary_comes_once_a_day_over_restarts_and_a_change_of_the_clocks(
    office: Office, web: WebService, hour: int
) -> None:
    office.add_web(web)
    digest_config(office, "daily", hour)
    office.clock.move(seconds=(datetime(2027, 3, 12, 20, tzinfo=UTC) - office.clock.now()).total_seconds())
    for step in range(3 * 24 * 4):
        office.tell(found=[], verdict="Your records are safe.")
        if step % 50 == 0:
            office.restart()
        office.clock.move(minutes=15)
    assert len(web.posted) == 3
    assert "Your records are safe." in web.posted[0]["message"]
    assert "Backups:" in web.posted[0]["message"] or "No database server" in web.posted[0]["message"]


def test_a_summary_whose_hour_was_missed_comes_once_when_the_computer_is_on_again(
    office: Office, web: WebService
) -> None:
    office.add_web(web)
    digest_config(office, "weekly", 8)
    office.tell(found=[])
    office.clock.move(days=20, hours=5)
    for _ in range(30):
        office.tell(found=[])
        office.clock.move(minutes=1)
    assert len(web.posted) == 1


def test_a_summary_waits_for_somebody_to_look_but_not_for_ever(office: Office, web: WebService) -> None:
    office.add_web(web)
    digest_config(office, "daily", 8)
    office.tell()
    for _ in range(24 * 6):
        office.tell(found=None)
        office.clock.move(minutes=10)
    assert len(web.posted) == 1


def test_the_heartbeat_is_sent_once_a_minute_and_says_when_something_is_wrong(office: Office, web: WebService) -> None:
    write_secret_file(office.home.heartbeat_secret, web.url.encode(), "heartbeat")
    for _ in range(300):
        office.tell(wait=1)
        office.clock.move(seconds=1)
    assert web.asked == ["/ping/toktoktoken"] * 5
    office.ran()
    office.tell()
    office.clock.move(seconds=61)
    office.tell()
    assert web.asked[-1] == "/ping/toktoktoken/fail"
    office.ran(JobState.DONE)
    office.tell()
    office.clock.move(seconds=61)
    office.tell()
    assert web.asked[-1] == "/ping/toktoktoken"


def test_a_heartbeat_that_nobody_hears_is_recorded_and_nothing_more(office: Office) -> None:
    write_secret_file(office.home.heartbeat_secret, f"http://127.0.0.1:{closed_port()}/toktoktoken".encode(), "x")
    told = [office.tell(wait=5)]
    for _ in range(5):
        office.clock.move(seconds=61)
        told.append(office.tell(wait=5))
    assert [one.warnings for one in told] == [
        ("notifications by heartbeat: the service cannot be reached: connection refused",), *[()] * 5
    ]  # fmt: skip
    assert office.box.heartbeat.failures == 6
    assert office.state.alerts.open() == []


def test_a_broken_configuration_or_state_is_a_warning_and_not_an_exception(office: Office) -> None:
    office.configure("nonsense = [")
    assert "nobody could be told: read" in office.tell().warnings[0]
    office.configure(CONFIG)
    office.state.alerts.set_value(NAME, "{broken")
    assert office.tell().warnings == ()


def test_no_secret_stands_in_the_state(office: Office, certificates: Certificates, web: WebService) -> None:
    with mail_server(certificates, wants_user=True) as mail:
        office.add_mail(mail, certificates)
        office.add_web(web)
        web.status = 500
        office.ran()
        office.tell()
    office.clock.move(minutes=30)
    office.tell()
    stored = b"".join(path.read_bytes() for path in office.home.state.glob("state.sqlite*"))
    assert b"clinic failed" in stored
    assert (PASSWORD.encode() in stored, b"toktoktoken" in stored) == (False, False)
