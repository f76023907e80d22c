"""The one declaration of what ``config.toml`` may say; help, checks and the reference come from it.

[repositories.NAME]   url, key_file | open
[clusters.NAME]       conninfo, repository, password_file, install_path, compress_level, threads, max_rate, keep_*, ...
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from datamanager.base.errors import ConfigurationError, UsageError
from datamanager.base.units import format_size, parse_size
from datamanager.config.conninfo import check_conninfo, check_url
from datamanager.config.durations import check_duration
from datamanager.config.names import check_name

MIN_RATE_BYTES, MAX_RATE_BYTES = 32 << 10, 1 << 30  # what BASE_BACKUP's MAX_RATE takes


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
ClusterName = Annotated[str, _name_of("cluster")]
RepositoryName = Annotated[str, _name_of("repository")]
Duration = Annotated[str, AfterValidator(check_duration)]
Keep = Annotated[int, Field(ge=0, le=1_000_000)]
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


class Config(_Section):
    """All of ``config.toml``."""

    repositories: dict[RepositoryName, RepositoryConfig] = Field(default_factory=dict)
    clusters: dict[ClusterName, ClusterConfig] = Field(default_factory=dict)
