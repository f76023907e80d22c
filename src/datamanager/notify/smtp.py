"""Plain e-mail, without anything between us and the mail server.

TLS is checked against the system's certificates or a file of one's own. A password is sent over TLS only, or, when
that is asked for, to this very computer. Source: RFC 5321, 3207 (STARTTLS), 4954 (AUTH), 4616 (PLAIN), 8314.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import smtplib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path

from datamanager.base.errors import NotSent
from datamanager.base.units import Secret
from datamanager.config.mail import is_loopback
from datamanager.config.model import Security
from datamanager.notify.message import MAX_TITLE, Message, one_line

MAX_SAID = 200
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,60}[A-Za-z0-9])?")
_ACCEPTED, _CONTINUE = (235, 503), 334  # 503: already authenticated
_FULL = (452, 552)


@dataclass(frozen=True, slots=True)
class SmtpOptions:
    """A mail server and what is told to it; ``seconds`` is the longest wait for one of its answers."""

    host: str
    port: int
    security: Security
    sender: str
    recipients: tuple[str, ...]
    user: str = ""
    password: Secret | None = None
    ca_file: Path | None = None
    allow_plain: bool = False
    seconds: float = 20.0


def send_mail(options: SmtpOptions, message: Message, left: tuple[str, ...] = ()) -> dict[str, str]:
    """Hand a message to the mail server.

    Args: left - the recipients that still miss it; all when there are none.
    Returns: the recipients that were refused, with the reason, when the server took it for others.
    Raises: NotSent, when it took it for nobody.
    """
    recipients = tuple(one for one in options.recipients if one in left) or options.recipients
    mail = written(options, message)
    try:
        refused = _handed_over(mail, options, recipients)
    except (smtplib.SMTPException, OSError, ValueError) as error:
        failure = _not_sent(error, options)
    else:
        return {address: _reason(code, said, options) for address, (code, said) in refused.items()}
    # Without the original behind it: some servers repeat what they were given, a password among it.
    raise failure


def _handed_over(mail: EmailMessage, options: SmtpOptions, recipients: tuple[str, ...]) -> dict[str, tuple[int, bytes]]:
    client = _connected(options)
    try:
        _authenticate(client, options)
        refused = client.send_message(mail, options.sender, list(recipients))
        with contextlib.suppress(smtplib.SMTPException, OSError):
            client.quit()
    finally:
        client.close()
    return refused


def written(options: SmtpOptions, message: Message) -> EmailMessage:
    """The mail; the same message always has the same Message-ID, so that one that came twice is shown once."""
    mail = EmailMessage()
    mail["Subject"] = one_line(message.title, MAX_TITLE)
    mail["From"] = options.sender
    mail["To"] = ", ".join(options.recipients)
    mail["Date"] = format_datetime(message.created)
    digest = hashlib.sha256(f"{options.sender} {message.id}".encode()).hexdigest()[:32]
    mail["Message-ID"] = f"<{digest}@{options.sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answers
    if message.urgent:
        mail["Importance"] = "high"
        mail["X-Priority"] = "1"
    mail.set_content(message.body)
    return mail


def _connected(options: SmtpOptions) -> smtplib.SMTP:
    # The name is given, because smtplib would ask name servers for it, without any time limit.
    name = socket.gethostname()
    name = name if _HOST_NAME.fullmatch(name) else "localhost"
    if options.security is Security.TLS:
        return smtplib.SMTP_SSL(
            options.host, options.port, name, timeout=options.seconds, context=_tls_context(options)
        )
    client = smtplib.SMTP(options.host, options.port, name, timeout=options.seconds)
    try:
        if options.security is Security.STARTTLS:
            client.starttls(context=_tls_context(options))
    except BaseException:
        client.close()
        raise
    return client


def _tls_context(options: SmtpOptions) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if options.ca_file is None else str(options.ca_file))
    except OSError as error:
        cause = (error.strerror or "they are not in PEM form").lower()
        raise NotSent(
            f"send e-mail: the certificates in {options.ca_file} cannot be read: {cause}",
            hint="Give a file with certificates in PEM form, or leave ca_file away.",
        ) from None


def _authenticate(client: smtplib.SMTP, options: SmtpOptions) -> None:
    """Log in with UTF-8, which smtplib's own login refuses."""
    if not options.user:
        return
    if options.password is None:
        raise NotSent(
            "send e-mail: the password of the mail account is missing",
            hint="Remove the channel and add it again with its password.",
        )
    _check_protected(client, options)
    client.ehlo_or_helo_if_needed()
    offered = client.esmtp_features.get("auth", "").upper().split()
    user, password = options.user.encode(), options.password.reveal()
    if "PLAIN" in offered:
        code, said = client.docmd("AUTH", "PLAIN " + _base64(b"\0" + user + b"\0" + password))
    elif "LOGIN" in offered:
        code, said = client.docmd("AUTH", "LOGIN " + _base64(user))
        if code == _CONTINUE:
            code, said = client.docmd(_base64(password))
    else:
        raise NotSent(
            f"send e-mail: {options.host} offers no way to log in that is known here",
            hint="Ask the mail provider for a server with AUTH PLAIN or LOGIN.",
        )
    if code not in _ACCEPTED:
        raise smtplib.SMTPAuthenticationError(code, said)


def _check_protected(client: smtplib.SMTP, options: SmtpOptions) -> None:
    """Raises: NotSent, before a password goes over a line that others can read."""
    if isinstance(client.sock, ssl.SSLSocket):
        return
    peer = client.sock.getpeername()[0] if client.sock is not None else ""
    if not (options.allow_plain and is_loopback(str(peer))):
        raise NotSent(
            "send e-mail: a password is not sent without TLS",
            hint="Use security tls or starttls; allow_plain is for a mail server on this computer.",
        )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _not_sent(error: Exception, options: SmtpOptions) -> NotSent:
    where = f"{options.host} port {options.port}"
    match error:
        case smtplib.SMTPAuthenticationError(smtp_code=code, smtp_error=said):
            return NotSent(
                f"send e-mail: {options.host} does not accept this user and password ({_said(code, said, options)})",
                hint="Remove the channel and add it with the right password; some providers want an app password.",
            )
        case smtplib.SMTPRecipientsRefused(recipients=refused):
            return NotSent(f"send e-mail: {_refusals(refused, options)}", hint="Check the recipients of the channel.")
        case smtplib.SMTPSenderRefused(smtp_code=code, smtp_error=said):
            return NotSent(
                f"send e-mail: {options.host} refuses the sender {options.sender} ({_said(code, said, options)})",
                hint="Use the address that belongs to the mail account.",
            )
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=said):
            return NotSent(f"send e-mail: {options.host} refused it ({_said(code, said, options)})")
        case smtplib.SMTPServerDisconnected() if not isinstance(error.__context__, TimeoutError):
            return NotSent(f"send e-mail: {where} closed the connection")
        case smtplib.SMTPNotSupportedError():
            return NotSent(
                f"send e-mail: {options.host} does not offer STARTTLS",
                hint="Use security tls; or none where no password is needed and the way is your own.",
            )
        case ssl.SSLCertVerificationError():
            return NotSent(
                f"send e-mail: the certificate of {options.host} is not trusted: {one_line(error.verify_message)}",
                hint="Use the name that the certificate is for, or give the file of your own authority as ca_file.",
            )
        case ssl.SSLError():
            return NotSent(
                f"send e-mail: {where} does not speak TLS as asked", hint="Check port and security of the channel."
            )
        case TimeoutError() | smtplib.SMTPServerDisconnected():
            return NotSent(f"send e-mail: {where} did not answer within {options.seconds:.0f} s")
        case socket.gaierror():
            return NotSent(f"send e-mail: no computer is known as {options.host}", hint="Check the name of the server.")
        case OSError():
            return NotSent(f"send e-mail: {where}: {(error.strerror or 'cannot be reached').lower()}")
    return NotSent(f"send e-mail: {where} answered what is not SMTP")


def _refusals(refused: Mapping[str, tuple[int, bytes]], options: SmtpOptions) -> str:
    return "; ".join(f"{address}: {_reason(code, said, options)}" for address, (code, said) in refused.items())


def _reason(code: int, said: bytes | str, options: SmtpOptions) -> str:
    plain = "the mailbox is full" if code in _FULL else "the mail server refuses this address"
    return f"{plain} ({_said(code, said, options)})"


def _said(code: int, said: bytes | str, options: SmtpOptions) -> str:
    """The server's own words on one line, without the password in any form that it was given."""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    if options.password is not None:
        password = options.password.reveal()
        user = options.user.encode()
        for secret in (
            password.decode(errors="replace"),
            _base64(password),
            _base64(b"\0" + user + b"\0" + password),
        ):
            text = text.replace(secret, "***")
    return one_line(f"{code} {text}", MAX_SAID)
