"""What a refused connection or a failed statement means, and what to do about it.

The SQLSTATE decides where there is one; only where libpq hides it (see ``connection``) the English text does. The
server's own wording, in whatever language it speaks, is kept in the message.

Source: PostgreSQL documentation, appendix A (error codes), 20.1 (pg_hba.conf); decision 21.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import psycopg

from datamanager.base.errors import (
    AuthenticationFailed,
    Cancelled,
    DataManagerError,
    NotFound,
    RightMissing,
    ServerError,
    ServerUnfit,
    ServerUnreachable,
)

# `FATAL:  28P01: text`: the word before is in the server's language, the code never is.
_CODE = re.compile(r":\s+(?=\w*\d)([0-9A-Z]{5})\s?:\s")
# The same at the start of a line, or the English word alone where there is no code.
_SEVERITY = re.compile(r"^(?:[^:]{1,30}:\s+[0-9A-Z]{5}\s?:|FATAL:|ERROR:)\s*")
_LOCATION = re.compile(r"^LOCATION:\s+(\w+),\s+(\S+?):\d+\s*$", re.MULTILINE)
_PREFIX = re.compile(r"^connection to server .*? failed:\s*", re.MULTILINE)
# An address, or a Unix socket, however the server's language quotes it.
_CLIENT = re.compile(r"\[local\]|[0-9A-Fa-f:.]{3,}(?:%\w+)?")

# The English text of each refusal, for a libpq that does not tell the code; first match wins.
_BY_TEXT = (
    (re.compile(r"password authentication failed", re.I), "28P01"),
    (
        re.compile(
            r"no pg_hba\.conf entry|pg_hba\.conf rejects|authentication failed for user|is not permitted to log in"
            r"|role \".*\" does not exist",
            re.I,
        ),
        "28000",
    ),
    (re.compile(r"database \".*\" does not exist", re.I), "3D000"),
    (
        re.compile(
            r"must be superuser or replication role|permission denied to start WAL sender"
            r"|permission denied for database",
            re.I,
        ),
        "42501",
    ),
    (re.compile(r"too many clients|max_wal_senders|too many connections|remaining connection slots", re.I), "53300"),
    (re.compile(r"starting up|shutting down|in recovery mode|not yet accepting connections", re.I), "57P03"),
)


@dataclass(frozen=True)
class Refusal:
    """A connection that was not made: libpq's text (secrets removed) and what was asked for."""

    text: str
    where: str
    user: str
    database: str
    replication: bool
    needs_password: bool
    used_password: bool

    @property
    def code(self) -> str:
        """The SQLSTATE of the last refusal in the text; empty when the server did not speak."""
        codes: list[str] = _CODE.findall(self.text)
        if codes:
            return codes[-1]
        return next((code for pattern, code in _BY_TEXT if pattern.search(self.text)), "")

    @property
    def function(self) -> str:
        """The server's function that refused, which is never translated; empty when unknown."""
        places = _LOCATION.findall(self.text)
        return str(places[-1][0]) if places else ""

    @property
    def last(self) -> str:
        """The last refusal, without libpq's preamble, which names the server's address.

        With sslmode=prefer the text holds one part for each try; the last is the one without TLS.
        """
        return _PREFIX.split(self.text)[-1].strip()

    @property
    def cause(self) -> str:
        """The last refusal in one line, without code and place."""
        first_line = self.last.split("\n")[0]
        return " ".join(_SEVERITY.sub("", first_line, count=1).split()).rstrip(".")


def quote_identifier(name: str) -> str:
    """``name`` as an SQL identifier, always quoted."""
    return '"' + name.replace('"', '""') + '"'


def hba_line(user: str, *, replication: bool, database: str = "all", client: str = "") -> str:
    """The pg_hba.conf line that admits ``user``.

    Args: client - the address the server saw; ``[local]`` is a Unix socket, empty stands for any.
    """
    name = quote_identifier(user) if user else "all"
    target = "replication" if replication else database if database == "all" else quote_identifier(database)
    if client == "[local]":
        return f"local {target} {name} scram-sha-256"
    try:
        parsed = ipaddress.ip_address(client.split("%")[0])
    except ValueError:
        return f"host {target} {name} samenet scram-sha-256"
    return f"host {target} {name} {parsed}/{parsed.max_prefixlen} scram-sha-256"


def error_of_refusal(refusal: Refusal) -> DataManagerError:
    """The error to raise for a connection that was not made."""
    message = f"connect to {refusal.where}: {refusal.cause or 'no answer'}"
    code = refusal.code
    if refusal.needs_password and not code:
        return AuthenticationFailed(f"connect to {refusal.where}: the server asks {refusal.user} for a password")
    if code == "28P01":
        return AuthenticationFailed(message)
    if code == "28000":
        return _not_admitted(refusal, message)
    if code == "42501":
        return _right_missing(refusal, message)
    if code == "53300":
        return _no_room(refusal, message)
    if code == "3D000":
        return NotFound(
            message, hint="Give an existing database in the connection string, for example dbname=postgres."
        )
    if code == "57P03":
        hint = "The server is starting, stopping or recovering; wait until it accepts connections and try again."
        return ServerUnreachable(message, hint=hint)
    if "invalid response to" in refusal.text:
        return ServerUnreachable(message, hint="Check host and port: what answers there is not a PostgreSQL server.")
    if not code and re.search(r"SSL|TLS|certificate", refusal.text) and "refused" not in refusal.text:
        hint = "Check sslmode and sslrootcert in the connection string against what the server offers."
        return ServerUnfit(message, hint=hint)
    if not code and refusal.used_password and "closed the connection" not in refusal.text:
        return AuthenticationFailed(message)
    return ServerUnreachable(message)


def _client_seen(text: str) -> str:
    """The client's address as the server names it in its refusal, in any language; empty when it does not."""
    for found in _CLIENT.findall(text):
        if found == "[local]":
            return "[local]"
        try:
            ipaddress.ip_address(found.split("%")[0])
        except ValueError:
            continue
        return str(found)
    return ""


def _not_admitted(refusal: Refusal, message: str) -> DataManagerError:
    """28000: no pg_hba.conf line, an identity check failed, or there is no such role."""
    if refusal.function == "InitializeSessionUserId" or re.search(r"role \".*\" (does not|is not)", refusal.text):
        name = quote_identifier(refusal.user)
        hint = (
            f"Run `CREATE ROLE {name} LOGIN REPLICATION PASSWORD '...';` on the server, or `ALTER ROLE {name} LOGIN;`."
        )
        return AuthenticationFailed(message, hint=hint)
    if refusal.function == "auth_failed":
        hint = (
            "The server checks the operating-system account for this connection; run as that account, or give"
            f" the role a password and put `{_line_for(refusal)}` above the line that matches in pg_hba.conf."
        )
        return AuthenticationFailed(message, hint=hint)
    hint = f"Add the line `{_line_for(refusal)}` to pg_hba.conf on the server, then run `SELECT pg_reload_conf();`."
    return AuthenticationFailed(message, hint=hint)


def _line_for(refusal: Refusal) -> str:
    database = refusal.database or "all"
    client = _client_seen(refusal.last)
    return hba_line(refusal.user, replication=refusal.replication, database=database, client=client)


def _right_missing(refusal: Refusal, message: str) -> DataManagerError:
    name = quote_identifier(refusal.user)
    if refusal.replication:
        return RightMissing(message, hint=f"Run `ALTER ROLE {name} REPLICATION;` on the server as a superuser.")
    database = quote_identifier(refusal.database)
    return RightMissing(message, hint=f"Run `GRANT CONNECT ON DATABASE {database} TO {name};` on the server.")


def _no_room(refusal: Refusal, message: str) -> DataManagerError:
    """53300: every slot of one kind is taken."""
    name = quote_identifier(refusal.user)
    if refusal.function == "InitializeSessionUserId" or "too many connections for role" in refusal.text:
        return ServerUnfit(
            message, hint=f"Run `ALTER ROLE {name} CONNECTION LIMIT -1;`, or close other sessions of it."
        )
    if "max_wal_senders" in refusal.text or (refusal.replication and refusal.function == "InitProcess"):
        hint = (
            "Run `ALTER SYSTEM SET max_wal_senders = 10;` (or more than now) and restart the server; a backup needs 2."
            " With wal_level = minimal set that to replica first."
        )
        return ServerUnfit(message, hint=hint)
    hint = "Close idle sessions, or run `ALTER SYSTEM SET max_connections = ...;` with a higher number and restart."
    return ServerUnfit(message, hint=hint)


def error_of_query(doing: str, error: psycopg.Error) -> DataManagerError:
    """The error to raise for a statement that failed on an open session."""
    text = " ".join((error.diag.message_primary or str(error)).split())
    message = f"{doing}: {text}"
    hint = error.diag.message_hint or ""
    code = error.sqlstate or ""
    if code == "42501":
        return RightMissing(message, hint=hint or "Ask a superuser to grant the right that is named.")
    if code == "57014":
        return Cancelled(message, hint="The server cancelled the statement, at its time limit or on request.")
    if not code or code[:2] in ("08", "57"):
        return ServerUnreachable(message)
    if code[:2] in ("0A", "22", "42", "53", "55"):
        return ServerUnfit(message, hint=hint)
    return ServerError(message, hint=hint)
