"""What tests of notifications share: a mail server and a web service of their own, and messages to send."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from datamanager.config.model import NotifyEvent
from datamanager.notify.message import Message, Sender

PASSWORD = "tür zu, es zieht"  # not ASCII, on purpose
USER = "backup@example.org"
NEW_YORK = ZoneInfo("America/New_York")
OFFICE = Sender(
    "Dr. Miller, Family Practice", "front-desk", NEW_YORK, {"clinic": ("billing", "records"), "lab": ("results",)}
)
NOW = dt.datetime(2026, 11, 23, 6, 4, tzinfo=dt.UTC)


def message(title: str = "A title", body: str = "A text.\n", **values: Any) -> Message:
    given: dict[str, Any] = {"id": "one@now", "key": "one", "event": NotifyEvent.FAILURE, "created": NOW, **values}
    return Message(title=title, body=body, **given)


@dataclass(frozen=True)
class Certificates:
    """An authority and a server's certificate for ``localhost`` and 127.0.0.1, as files."""

    authority: Path
    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Valid for a day from now."""
    now = dt.datetime.now(dt.UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(authority_name).public_key(public)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        return made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    authority = (
        builder(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    made = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    made.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    made.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@dataclass
class Received:
    """What a mail server took, as handler of aiosmtpd."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # address to the server's answer
    users: list[str] = field(default_factory=list)
    over_tls: list[bool] = field(default_factory=list)

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        read = message_from_bytes(content, policy=policy.default)
        assert isinstance(read, EmailMessage)
        self.mails.append(read)
        self.recipients.append(list(envelope.rcpt_tos))
        self.over_tls.append(session.ssl is not None)
        return "250 taken"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, given: Any
    ) -> AuthResult:
        if isinstance(given, LoginPassword) and (given.login, given.password) == (USER.encode(), PASSWORD.encode()):
            self.users.append(given.login.decode())
            return AuthResult(success=True)
        # A server that repeats what it was given, as some do.
        said = given.password.decode(errors="replace") if isinstance(given, LoginPassword) else ""
        return AuthResult(success=False, handled=False, message=f"535 5.7.8 no such password {said}")

    @property
    def subjects(self) -> list[str]:
        return [str(mail["Subject"]) for mail in self.mails]


class MailServer:
    """A running mail server; ``host`` and ``port`` reach it."""

    def __init__(self, controller: Controller, received: Received) -> None:
        self.received = received
        self.host, self.port = "127.0.0.1", int(controller.server.sockets[0].getsockname()[1])  # type: ignore[union-attr]


@contextmanager
def mail_server(
    certificates: Certificates | None = None, *, tls: bool = False, wants_user: bool = False, plain_auth: bool = False
) -> Iterator[MailServer]:
    """A mail server: in the open, with STARTTLS when there are certificates, or with TLS from the first byte."""
    received = Received()
    context = certificates.context() if certificates else None
    values: dict[str, Any] = {"auth_required": wants_user, "authenticator": received.authenticate}
    values["auth_require_tls"] = not (plain_auth or tls)
    if tls:
        values["ssl_context"] = context
    elif context is not None:
        values |= {"tls_context": context, "require_starttls": True}
    controller = Controller(received, hostname="127.0.0.1", port=_free_port(), **values)
    controller.start()
    try:
        yield MailServer(controller, received)
    finally:
        controller.stop()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class WebService:
    """What a web service was asked, and what it answers."""

    port: int = 0
    status: int = 200
    asked: list[str] = field(default_factory=list)
    posted: list[dict[str, Any]] = field(default_factory=list)

    @property
    def json_url(self) -> str:
        return f"json://127.0.0.1:{self.port}/hook/toktoktoken"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/ping/toktoktoken"

    @property
    def titles(self) -> list[str]:
        return [str(one["title"]) for one in self.posted]


@contextmanager
def web_service() -> Iterator[WebService]:
    service = WebService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.asked.append(self.path)
            self._answer()

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            read = json.loads(self.rfile.read(length))
            if service.status == 200:
                service.posted.append(read)
            self._answer()

        def _answer(self) -> None:
            self.send_response(service.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent_server(*, trickles: bool = False) -> Iterator[int]:
    """A port where someone takes the call and says nothing, or a letter every 0.2 s."""
    ended = threading.Event()
    calls: list[socket.socket] = []

    def serve() -> None:
        while not ended.is_set():
            try:
                call, _ = listener.accept()
            except OSError:
                return
            calls.append(call)
            if trickles:
                threading.Thread(target=trickle, args=(call,), daemon=True).start()

    def trickle(call: socket.socket) -> None:
        with call:
            while not ended.wait(0.2):
                try:
                    call.sendall(b"2")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for call in calls:
                call.close()


def closed_port() -> int:
    """A port where nobody listens."""
    return _free_port()
