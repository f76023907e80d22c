"""``datamanager notify``: channels are tried before they are kept, and no secret is ever shown."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.base.clock import SystemClock
from datamanager.config.state_url import sqlite_url
from datamanager.state.database import State, open_state
from tests.cli.caller import Done, Installation
from tests.notify.parts import (
    PASSWORD,
    USER,
    Certificates,
    MailServer,
    WebService,
    closed_port,
    mail_server,
    make_certificates,
    silent_server,
    web_service,
)

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def mail(certificates: Certificates) -> Iterator[MailServer]:
    with mail_server(certificates, wants_user=True) as server:
        yield server


@pytest.fixture
def web() -> Iterator[WebService]:
    with web_service() as service:
        yield service


def words(mail: MailServer, certificates: Certificates, password: Path | None, *more: str) -> list[str | Path]:
    given: list[str | Path] = ["--password-file", password] if password else []
    return [
        "notify", "add", "office", "--smtp", f"{mail.host}:{mail.port}", "--user", USER, *given, "--from", USER,
        "--to", "manager@example.org", "--to", "owner@example.org", "--ca-file", certificates.authority, *more,
    ]  # fmt: skip


def opened(installation: Installation) -> State:
    return open_state(sqlite_url(installation.home / "state.sqlite"), clock=SystemClock())


def everything(installation: Installation) -> bytes:
    """Every byte in the home but the secret files."""
    files = [path for path in installation.home.rglob("*") if path.is_file() and path.suffix != ".secret"]
    return b"".join(path.read_bytes() for path in files)


def test_a_mail_channel_is_tried_kept_tested_listed_and_removed(
    installation: Installation, mail: MailServer, certificates: Certificates
) -> None:
    installation.ok("config", "set", "notify.organization", "Dr. Miller, Family Practice")
    password = installation.secret_file("mail.pass", PASSWORD + "\n")
    added = installation.result(*words(mail, certificates, password, "--events", "failure,overdue"))
    assert (added["channel"], added["checked"], added["recipients"]) == (
        "office", True, ["manager@example.org", "owner@example.org"]
    )  # fmt: skip
    tested = installation.result("notify", "test")
    assert tested["tested"] == [{"channel": "office", "taken": True, "trouble": ""}]
    assert len(mail.received.mails) == 2
    assert mail.received.subjects[0].startswith("[Dr. Miller, Family Practice] Test message (")
    listed = installation.result("notify", "list")
    assert [(one["channel"], one["events"], one["waiting"]) for one in listed["channels"]] == [
        ("office", ["failure", "overdue"], 0)
    ]
    shown = installation.ok("notify", "list").out
    assert shown.startswith(f"office: e-mail to manager@example.org, owner@example.org by {mail.host};")
    secret = installation.home / "keys" / "notify-office.secret"
    assert secret.read_text(encoding="utf-8") == PASSWORD + "\n"
    assert os.name == "nt" or stat.S_IMODE(secret.stat().st_mode) == 0o600
    installation.ok("notify", "remove", "office")
    assert not secret.exists()
    assert "Nobody is told of failures" in installation.ok("notify", "list").out


def test_a_channel_that_does_not_take_the_test_message_is_not_kept_unless_asked(
    installation: Installation, mail: MailServer, certificates: Certificates
) -> None:
    password = installation.secret_file("mail.pass", "not this one, hunter2\n")
    refused = installation.run(*words(mail, certificates, password))
    assert refused.code == 63
    assert "does not accept this user and password" in refused.errors
    assert "--no-check" in refused.errors
    assert list((installation.home / "keys").glob("*")) == []
    installation.ok(*words(mail, certificates, password, "--no-check"))
    failed = installation.run("notify", "test", "office")
    assert (failed.code, "office: not taken: " in failed.out) == (63, True)
    assert b"hunter2" not in everything(installation)
    assert "hunter2" not in f"{refused}{failed}"


def test_a_service_is_added_by_its_address_which_is_never_shown(installation: Installation, web: WebService) -> None:
    done: list[Done] = [installation.ok("notify", "add", "phone", "--url-file", "-", stdin=web.json_url + "\n")]
    done += [
        installation.ok(*one)
        for one in (("notify", "test"), ("notify", "list"), ("config", "show"), ("config", "export"))
    ]
    done += [installation.ok("config", "show", "--json"), installation.ok("audit", "list")]
    web.status = 401
    done.append(installation.run("notify", "test"))
    assert "phone: not taken: the service answered 401" in done[-1].out
    assert len(web.posted) == 2
    assert "toktoktoken" not in repr(done)
    assert b"toktoktoken" not in everything(installation)


def test_the_password_may_come_from_a_pipe(
    installation: Installation, mail: MailServer, certificates: Certificates
) -> None:
    installation.ok(*words(mail, certificates, None), stdin=PASSWORD + "\n")
    assert mail.received.users == [USER]
    assert PASSWORD.encode() not in everything(installation)


@pytest.mark.parametrize(
    ("given", "code", "sentence"),
    [
        (["add", "office"], 2, "give either --smtp or --url-file"),
        (["add", "latest", "--smtp", "x", "--from", "a@b.org", "--to", "c@d.org"], 2, "'latest' cannot be used"),
        (["add", "office", "--smtp", "x", "--from", "a@b.org"], 10, "host, sender and recipients are needed"),
        (["add", "office", "--smtp", "x:y", "--from", "a@b.org", "--to", "c@d.org"], 2, "'y' is not a port"),
        (["add", "office", "--smtp", "x", "--from", "a@b.org", "--to", "c@d.org\nBcc: e@f.org"], 10, "not an e-mail"),
        (["add", "office", "--smtp", "a b", "--from", "a@b.org", "--to", "c@d.org"], 10, "not the name of a mail"),
        (["add", "office", "--smtp", "x", "--from", "a@b.org", "--to", "c@d.org", "--events", "fire"], 10, "events"),
        (
            ["add", "office", "--smtp", "mail.example.org", "--security", "none", "--allow-plain", "--user", "u",
             "--from", "a@b.org", "--to", "c@d.org"], 10, "a password goes over TLS only",
        ),
        (["add", "office", "--url-file", "-"], 2, "no service takes it"),
        (["add", "office", "--url-file", "-", "--from", "a@b.org"], 2, "sender is for e-mail alone"),
        (["test", "nobody"], 11, "none is named 'nobody'"),
        (["test"], 2, "there is none"),
        (["remove", "nobody"], 11, "none is named 'nobody'"),
        (["acknowledge"], 2, "either a KEY or --all"),
        (["acknowledge", "x"], 11, "nothing that is told now is named 'x'"),
        (["heartbeat", "--remove"], 11, "none is set"),
        (["heartbeat", "--url-file", "-"], 2, "it is not a web address"),
    ],
)  # fmt: skip
def test_what_is_given_wrongly_is_said(installation: Installation, given: list[str], code: int, sentence: str) -> None:
    done = installation.run("notify", *given, stdin="nonsense\n")
    assert (done.code, sentence in done.errors) == (code, True), done
    assert not (installation.home / "config.toml").exists()


def test_a_password_in_the_configuration_is_refused_unrepeated(installation: Installation) -> None:
    installation.home.mkdir()
    file = installation.home / "config.toml"
    file.write_text('[channels.x]\nkind = "url"\nurl = "json://toktoktoken"\n', encoding="utf-8")
    done = installation.run("notify", "list")
    assert done.code == 10
    assert "channels.x.url is not an option" in done.errors
    assert "toktoktoken" not in done.errors


def test_what_is_told_now_is_listed_with_troubles_and_acknowledged(installation: Installation) -> None:
    installation.ok("notify", "list")
    with opened(installation) as state:
        state.alerts.raise_("failed:backup run:clinic", "The backup of clinic failed", "text")
        state.alerts.raise_("found:service:HL7", "Needs someone now", "text", urgent=True)
    listed = installation.result("notify", "list")
    assert [(one["key"], one["urgent"]) for one in listed["alerts"]] == [
        ("failed:backup run:clinic", False), ("found:service:HL7", True)
    ]  # fmt: skip
    assert installation.result("notify", "acknowledge", "found:")["acknowledged"] == ["found:service:HL7"]
    assert "acknowledged by" in installation.ok("notify", "list").out
    assert installation.result("notify", "acknowledge", "--all")["acknowledged"] == ["failed:backup run:clinic"]
    assert installation.ok("notify", "acknowledge", "--all").out == "Nothing is told now.\n"


def test_a_heartbeat_is_tried_kept_and_taken_away(installation: Installation, web: WebService) -> None:
    file = installation.secret_file("address", f"http://127.0.0.1:{closed_port()}/toktoktoken\n")
    refused = installation.run("notify", "heartbeat", "--url-file", file)
    assert (refused.code, "the service cannot be reached" in refused.errors) == (63, True)
    installation.ok("notify", "heartbeat", "--url-file", "-", stdin=web.url + "\n")
    assert web.asked == ["/ping/toktoktoken"]
    assert "heartbeat: nothing sent yet" in installation.ok("notify", "list").out
    assert b"toktoktoken" not in everything(installation)
    installation.ok("notify", "heartbeat", "--remove")
    assert installation.result("notify", "list")["heartbeat"] is None


def test_testing_a_channel_that_hangs_takes_no_longer_than_its_time(
    installation: Installation, certificates: Certificates
) -> None:
    with silent_server(trickles=True) as port:
        given = ["--from", USER, "--to", USER, "--timeout", "1", "--no-check"]
        installation.ok("notify", "add", "slow", "--smtp", f"127.0.0.1:{port}", *given)
        done = installation.run("notify", "test")
    assert (done.code, "slow: not taken: no answer within 1 s" in done.out) == (63, True)
