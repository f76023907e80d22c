"""Plain e-mail: what a real mail server receives, and what each way of failing is called."""

from __future__ import annotations

import time
from dataclasses import replace
from email import policy
from pathlib import Path

import pytest

from datamanager.base.errors import NotSent
from datamanager.base.units import Secret
from datamanager.config.model import Security
from datamanager.notify.smtp import SmtpOptions, send_mail, written
from tests.notify.parts import (
    PASSWORD,
    USER,
    Certificates,
    MailServer,
    closed_port,
    mail_server,
    message,
    silent_server,
)

# The library of the test's own server warns of what the test is about.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


def options(server: MailServer, certificates: Certificates, **values: object) -> SmtpOptions:
    made = SmtpOptions(
        host=server.host,
        port=server.port,
        security=Security.STARTTLS,
        sender=USER,
        recipients=("manager@example.org", "owner@example.org"),
        user=USER,
        password=Secret(PASSWORD),
        ca_file=certificates.authority,
        seconds=5.0,
    )
    return replace(made, **values)  # type: ignore[arg-type]


def test_starttls_and_a_password_that_is_not_ascii_reach_everybody(
    mail: MailServer, certificates: Certificates
) -> None:
    text = "Zwölf Äpfel\n.\nA line with a dot above.\n" + "long " * 400 + "\n"
    assert send_mail(options(mail, certificates), message("Die Sicherung schlug fehl – heute", text)) == {}
    got = mail.received
    assert (got.users, got.over_tls) == ([USER], [True])
    assert got.recipients == [["manager@example.org", "owner@example.org"]]
    assert got.mails[0]["Subject"] == "Die Sicherung schlug fehl – heute"
    assert got.mails[0]["Auto-Submitted"] == "auto-generated"
    assert got.mails[0].get_content().replace("\r\n", "\n") == text


def test_tls_from_the_first_byte(certificates: Certificates) -> None:
    with mail_server(certificates, tls=True, wants_user=True) as server:
        send_mail(options(server, certificates, security=Security.TLS), message())
        assert server.received.users == [USER]


def test_the_same_message_has_the_same_id_and_an_urgent_one_is_marked(
    mail: MailServer, certificates: Certificates
) -> None:
    how = options(mail, certificates)
    one, again, other = (written(how, message(id=id, urgent=True)) for id in ("a@1", "a@1", "a@2"))
    assert one["Message-ID"] == again["Message-ID"] != other["Message-ID"]
    assert one["Importance"] == "high"


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_certificate_of_an_unknown_authority_is_refused(certificates: Certificates, security: Security) -> None:
    with mail_server(certificates, tls=security is Security.TLS, wants_user=True) as server:
        with pytest.raises(NotSent, match=r"the certificate of 127\.0\.0\.1 is not trusted"):
            send_mail(options(server, certificates, security=security, ca_file=None), message())
        assert (server.received.mails, server.received.users) == ([], [])


def test_a_certificate_for_another_name_is_refused(certificates: Certificates) -> None:
    with mail_server(certificates, tls=True) as server:
        how = options(server, certificates, security=Security.TLS, host="127.0.0.2")
        with pytest.raises(NotSent, match=r"not trusted|refused|cannot be reached"):
            send_mail(how, message())
        assert server.received.mails == []


def test_a_password_never_goes_over_an_open_line_unless_allowed_to_this_computer() -> None:
    with mail_server(wants_user=True, plain_auth=True) as server:
        how = SmtpOptions(
            server.host, server.port, Security.NONE, USER, ("m@example.org",), USER, Secret(PASSWORD), seconds=5
        )
        with pytest.raises(NotSent, match="a password is not sent without TLS"):
            send_mail(how, message())
        assert server.received.users == []
        send_mail(replace(how, allow_plain=True), message())
        assert (server.received.users, server.received.over_tls) == ([USER], [False])


def test_a_wrong_password_is_said_so_and_never_repeated(mail: MailServer, certificates: Certificates) -> None:
    with pytest.raises(NotSent) as caught:
        send_mail(options(mail, certificates, password=Secret("hunter2 but longer")), message())
    assert "does not accept this user and password (535" in caught.value.message
    assert "***" in caught.value.message
    assert "hunter2" not in f"{caught.value.message}{caught.value.hint}"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert mail.received.mails == []


def test_a_full_mailbox_of_one_leaves_the_others_their_message(mail: MailServer, certificates: Certificates) -> None:
    mail.received.refused = {"owner@example.org": "452 4.2.2 mailbox full"}
    how = options(mail, certificates)
    refused = send_mail(how, message())
    assert refused == {"owner@example.org": "the mailbox is full (452 4.2.2 mailbox full)"}
    assert mail.received.recipients == [["manager@example.org"]]
    mail.received.refused = {}
    assert send_mail(how, message(), ("owner@example.org",)) == {}
    assert mail.received.recipients[1] == ["owner@example.org"]


def test_a_server_that_refuses_everybody_is_named_with_its_words(mail: MailServer, certificates: Certificates) -> None:
    mail.received.refused = dict.fromkeys(("manager@example.org", "owner@example.org"), "550 5.1.1 no such user")
    with pytest.raises(NotSent, match=r"owner@example\.org: the mail server refuses this address \(550"):
        send_mail(options(mail, certificates), message())


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"host": "no-such-host.invalid"}, "no computer is known as no-such-host.invalid"),
        ({"port": closed_port()}, "connection refused"),
        ({"security": Security.TLS}, "does not speak TLS as asked"),
        ({"ca_file": Path("/no/such/file.pem")}, "cannot be read: no such file"),
        ({"password": None}, "the password of the mail account is missing"),
    ],
)
def test_what_is_set_wrong_is_said(
    mail: MailServer, certificates: Certificates, values: dict[str, object], cause: str
) -> None:
    with pytest.raises(NotSent) as caught:
        send_mail(options(mail, certificates, **values), message())
    assert cause in caught.value.message


def test_a_server_without_starttls_is_said_so() -> None:
    with mail_server() as server:
        how = SmtpOptions(server.host, server.port, Security.STARTTLS, USER, ("m@example.org",), seconds=5)
        with pytest.raises(NotSent, match="does not offer STARTTLS"):
            send_mail(how, message())


def test_a_server_that_hangs_ends_at_the_time_limit() -> None:
    with silent_server() as port:
        how = SmtpOptions("127.0.0.1", port, Security.STARTTLS, USER, ("m@example.org",), seconds=0.5)
        begun = time.monotonic()
        with pytest.raises(NotSent, match="did not answer within"):
            send_mail(how, message())
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "evil", ["clinic\r\nBcc: thief@example.org", "a\nb", "a\x00b", "a\u2028b", "a\u202eb", "é\x85x"]
)
def test_no_name_can_put_a_line_into_the_head_of_a_mail(
    mail: MailServer, certificates: Certificates, evil: str
) -> None:
    how = options(mail, certificates)
    made = written(how, message(evil))
    head = made.as_bytes(policy=policy.SMTP).partition(b"\r\n\r\n")[0]
    assert made["Bcc"] is None
    assert [line for line in head.split(b"\r\n") if line.lower().startswith(b"bcc")] == []
    send_mail(how, message(evil))
    assert mail.received.recipients == [["manager@example.org", "owner@example.org"]]
    assert mail.received.mails[0]["Bcc"] is None
