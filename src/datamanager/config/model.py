"""The one declaration of what ``config.toml`` may say; help, checks and the reference come from it.

[repositories.NAME]   url, key_file | open
[clusters.NAME]       conninfo, repository, password_file, install_path, compress_level, max_rate, keep_*, wal, ...
[state]               url, password_file
[proof]               limit
[metrics]             host, anybody
[logs]                keep
[notify]              organization, server, digest, digest_hour, digest_day, zone
[services.NAME]       start, stop, state, limit_seconds
[channels.NAME]       kind, events, and for e-mail host, port, security, user, sender, recipients, ...
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.base.units import format_size, parse_size
from datamanager.config.conninfo import check_conninfo, check_url
from datamanager.config.durations import check_duration
from datamanager.config.mail import check_address, check_host, is_loopback
from datamanager.config.names import check_name
from datamanager.config.state_url import check_state_url
from datamanager.system.commands import split_command

MIN_RATE_BYTES, MAX_RATE_BYTES = 32 << 10, 1 << 30  # what BASE_BACKUP's MAX_RATE takes
MIN_WAL_INTERVAL, MAX_WAL_INTERVAL = 0.1, 3600.0


class Checkpoint(StrEnum):
    """How a backup asks for its checkpoint: at once, or spread over the server's own time."""

    FAST = "fast"
    SPREAD = "spread"


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _rate(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _name_of(what: str) -> AfterValidator:
    def check(name: str) -> str:
        try:
            return check_name(what, name)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None

    return AfterValidator(check)


def _without_secret(check: Callable[[str], None]) -> AfterValidator:
    def checked(text: str) -> str:
        try:
            check(text)
        except ConfigurationError as error:
            raise ValueError(f"{error.message.partition(': ')[2]}; {error.hint}") from None
        return text

    return AfterValidator(checked)


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
ChannelName = Annotated[str, _name_of("channel")]
ClusterName = Annotated[str, _name_of("cluster")]
RepositoryName = Annotated[str, _name_of("repository")]
ServiceName = Annotated[str, _name_of("service")]
Duration = Annotated[str, AfterValidator(check_duration)]
Keep = Annotated[int, Field(ge=0, le=1_000_000)]
# Source: PostgreSQL src/backend/replication/slot.c, ReplicationSlotValidateName.
SlotName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")]
Rate = Annotated[int, BeforeValidator(_rate), Field(ge=MIN_RATE_BYTES, le=MAX_RATE_BYTES)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RepositoryConfig(_Section):
    """Where a repository is and what opens it unattended: a key file, or nothing when it is not encrypted."""

    url: Annotated[str, _without_secret(check_url)] = Field(
        min_length=1, description="the folder of the repository, or its address"
    )
    key_file: AbsolutePath | None = Field(None, description="file with the key that opens it")
    open: bool = Field(False, description="true when the repository is not encrypted")
    open_reason: str = Field("", description="why it is not encrypted")

    @model_validator(mode="after")
    def _one_key(self) -> RepositoryConfig:
        if self.open and self.key_file is not None:
            raise ValueError("has both key_file and open = true; keep one")
        return self


class ClusterConfig(_Section):
    """A PostgreSQL server and how it is backed up."""

    conninfo: Annotated[str, _without_secret(check_conninfo)] = Field(
        description="libpq connection string without a password"
    )
    repository: RepositoryName | None = Field(None, description="repository used when a command names none")
    password_file: AbsolutePath | None = Field(None, description="file whose first line is the password")
    install_path: AbsolutePath | None = Field(None, description="folder that holds PostgreSQL's bin folder")
    data_directory: AbsolutePath | None = Field(
        None, description="data directory for `backup run --cold`; else where the newest backup found it"
    )
    compress_level: int = Field(1, ge=0, le=19, description="zstd level 1 to 19; 0 stores without compression")
    threads: int | None = Field(None, ge=1, le=64, description="threads that compress; the processors when absent")
    max_rate: Rate | None = Field(
        None, description=f"bytes a second read from the server, {format_size(MIN_RATE_BYTES)} or more, as in 50MB"
    )
    checkpoint: Checkpoint = Field(Checkpoint.FAST, description="fast begins at once, spread spares the server")
    keep_last: Keep | None = Field(None, description="`expire` keeps so many of the newest backups")
    keep_within: Duration | None = Field(None, description="`expire` keeps backups no older than this, as in 14d")
    keep_hourly: Keep | None = Field(None, description="`expire` keeps the newest of so many hours with a backup")
    keep_daily: Keep | None = Field(None, description="`expire` keeps the newest of so many days with a backup")
    keep_weekly: Keep | None = Field(None, description="`expire` keeps the newest of so many weeks with a backup")
    keep_monthly: Keep | None = Field(None, description="`expire` keeps the newest of so many months with a backup")
    keep_yearly: Keep | None = Field(None, description="`expire` keeps the newest of so many years with a backup")
    keep_minimum: int = Field(
        1, ge=1, le=1_000_000, description="so many of the newest undamaged backups stay whatever the other options say"
    )
    wal: bool = Field(False, description="true lets `serve` archive its WAL all the time")
    wal_interval: float = Field(
        3.0, ge=MIN_WAL_INTERVAL, le=MAX_WAL_INTERVAL, description="WAL is sealed after so many seconds at the latest"
    )
    wal_synchronous: bool = Field(False, description="true lets commits wait until their WAL is in the repository")
    wal_window: Duration | None = Field(
        None,
        description="every moment so far back can be restored, as in 14d; when absent all since the oldest kept backup",
    )
    wal_slot: SlotName | None = Field(
        None, description="replication slot of its WAL archive; named after cluster and repository when absent"
    )


class StateConfig(_Section):
    """The database of history, schedules, alerts and audit."""

    url: Annotated[str, _without_secret(check_state_url)] | None = Field(
        default=None,
        description="its address, as postgresql://USER@HOST/DATABASE; a SQLite file in the home when absent",
    )
    password_file: AbsolutePath | None = Field(default=None, description="file whose first line is the password")


class Security(StrEnum):
    """How a mail server is spoken to: TLS from the first byte, TLS after STARTTLS, or in the open."""

    TLS = "tls"
    STARTTLS = "starttls"
    NONE = "none"


class ChannelKind(StrEnum):
    """An e-mail that we send ourselves, or any service that Apprise reaches by an address."""

    SMTP = "smtp"
    URL = "url"


class NotifyEvent(StrEnum):
    """What a channel is told of; something urgent goes to every channel."""

    FAILURE = "failure"
    OVERDUE = "overdue"
    RECOVERED = "recovered"
    DIGEST = "digest"
    ALL = "all"


class DigestPace(StrEnum):
    """How often the summary comes."""

    DAILY = "daily"
    WEEKLY = "weekly"
    NONE = "none"


class Weekday(StrEnum):
    """A day of the week, Monday first."""

    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("not the name of a time zone, as in America/New_York") from None
    return name


def _list(value: object) -> object:
    """Words between commas, as a person types a list."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Address = Annotated[str, AfterValidator(check_address)]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_list)]
Events = Annotated[tuple[NotifyEvent, ...], BeforeValidator(_list), Field(min_length=1)]
MailHost = Annotated[str, AfterValidator(check_host)]
Zone = Annotated[str, AfterValidator(_zone)]
_PORTS = {Security.TLS: 465, Security.STARTTLS: 587, Security.NONE: 25}


class NotifyConfig(_Section):
    """What stands in every message, and when the summary comes."""

    organization: str = Field(
        default="", max_length=120, description="name that stands in every message, as of the clinic"
    )
    server: str = Field(
        default="", max_length=120, description="name of this computer in messages; its host name when empty"
    )
    digest: DigestPace = Field(
        default=DigestPace.WEEKLY, description="how often the summary comes: daily, weekly or none"
    )
    digest_hour: int = Field(default=8, ge=0, le=23, description="local hour of the summary")
    digest_day: Weekday = Field(default=Weekday.MONDAY, description="day of a weekly summary")
    zone: Zone | None = Field(
        default=None, description="time zone of messages and summary; that of this computer when absent"
    )


class ChannelConfig(_Section):
    """A way to tell people. Its password or address is in a file beside the keys, never here."""

    kind: ChannelKind = Field(description="smtp, or url for any service that Apprise knows")
    events: Events = Field((NotifyEvent.ALL,), description="failure, overdue, recovered, digest, or all")
    host: MailHost | None = Field(None, description="mail server")
    port: int | None = Field(None, ge=1, le=65535, description="465 for tls, 587 for starttls, 25 for none when absent")
    security: Security = Field(Security.STARTTLS, description="tls, starttls or none")
    user: str = Field("", max_length=320, description="account at the mail server; its password is in a file")
    sender: Address | None = Field(None, description="address that messages come from")
    recipients: Addresses = Field((), max_length=50, description="addresses that messages go to")
    ca_file: AbsolutePath | None = Field(None, description="certificates that the mail server is checked against")
    allow_plain: bool = Field(False, description="send a password without TLS, to a mail server on this computer only")
    timeout_seconds: int = Field(20, ge=1, le=120, description="a message that takes longer is tried again later")

    @model_validator(mode="after")
    def _complete(self) -> ChannelConfig:
        if self.kind is ChannelKind.URL:
            return self
        if self.host is None or self.sender is None or not self.recipients:
            raise ValueError("host, sender and recipients are needed to send e-mail")
        if self.user and self.security is Security.NONE and not (self.allow_plain and is_loopback(self.host)):
            raise ValueError(
                "a password goes over TLS only; use security tls or starttls, "
                "or allow_plain for a mail server on this computer"
            )
        return self

    @property
    def needs_secret(self) -> bool:
        """Whether a file beside the keys holds its address or its password."""
        return self.kind is ChannelKind.URL or bool(self.user)

    @property
    def smtp_port(self) -> int:
        """The port in force."""
        return self.port or _PORTS[self.security]


def _command(text: str) -> str:
    try:
        program = Path(split_command(text)[0])
    except ValueError as error:
        raise ValueError(f"not a command: {error}") from None
    if not program.is_absolute() and len(program.parts) > 1:
        raise ValueError("must name its program by an absolute path, or by a name that stands on PATH")
    return text


CommandLine = Annotated[str, AfterValidator(_command)]


class ServiceConfig(_Section):
    """A service that this system does not list itself: the commands that act on it, run without a shell."""

    start: CommandLine = Field(description="command that starts it, and returns when it runs")
    stop: CommandLine = Field(description="command that stops it, and returns when it has stopped")
    state: CommandLine = Field(description="command that ends with 0 while it runs, with 1 to 3 while it does not")
    limit_seconds: int = Field(90, ge=1, le=3600, description="how long a start or a stop may take")


class ProofConfig(_Section):
    """What is asked of test restores."""

    limit: Duration = Field(
        default="30d", description="`status` is red when the newest test restore is older than this"
    )


class MetricsConfig(_Section):
    """Where `serve --metrics-port` answers."""

    host: str = Field(default="127.0.0.1", description="number of the address; one that others reach needs `anybody`")
    anybody: bool = Field(default=False, description="answer other computers, too; there is no password")

    @model_validator(mode="after")
    def _not_by_mistake(self) -> MetricsConfig:
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise ValueError("host is not the number of an address, as in 127.0.0.1") from None
        if not loopback and not self.anybody:
            raise ValueError("other computers reach that address, and there is no password; set metrics.anybody first")
        return self


class LogsConfig(_Section):
    """The texts that runs leave in the folder of logs."""

    keep: int = Field(
        default=10, ge=1, le=100_000, description="so many of the newest texts of each job stay; pinned ones always"
    )


class Config(_Section):
    """All of ``config.toml``."""

    repositories: dict[RepositoryName, RepositoryConfig] = Field(default_factory=dict)
    clusters: dict[ClusterName, ClusterConfig] = Field(default_factory=dict)
    state: StateConfig = StateConfig()
    notify: NotifyConfig = NotifyConfig()
    logs: LogsConfig = LogsConfig()
    proof: ProofConfig = ProofConfig()
    metrics: MetricsConfig = MetricsConfig()
    services: dict[ServiceName, ServiceConfig] = Field(default_factory=dict)
    channels: dict[ChannelName, ChannelConfig] = Field(default_factory=dict)
