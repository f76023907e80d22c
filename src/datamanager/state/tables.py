"""The tables of the state, as the newest revision in ``migrations/versions`` leaves them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    text,
)

from datamanager.state.columns import Json, Moment, Words

# The revision that this release reads and writes.
REVISION = "0001"
# Where the tables are in PostgreSQL.
SCHEMA = "datamanager"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)
# SQLite counts a row's number by itself only for the type INTEGER.
_Number = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Words, primary_key=True),
    Column("kind", Words, nullable=False),
    Column("arguments", Json, nullable=False),
    Column("subject", Words, nullable=False),
    Column("trigger", Words, nullable=False),
    Column("who", Words, nullable=False),
    Column("schedule", Words),
    Column("due", Moment),
    Column("heavy", Boolean, nullable=False),
    Column("low_priority", Boolean, nullable=False),
    Column("limit_seconds", Float),
    Column("state", Words, nullable=False),
    Column("queued", Moment, nullable=False),
    Column("started", Moment),
    Column("ended", Moment),
    Column("host", Words, nullable=False),
    Column("pid", BigInteger),
    Column("pid_started", Float(53)),
    Column("heartbeat", Moment),
    Column("progress", Json, nullable=False),
    Column("exit_code", BigInteger),
    Column("summary", Words, nullable=False),
    Column("cause", Words, nullable=False),
    Column("effect", Words, nullable=False),
    Column("next_step", Words, nullable=False),
    Column("result", Json, nullable=False),
    Column("warnings", Json, nullable=False),
    Column("log", Words, nullable=False),
    Column("log_pinned", Boolean, nullable=False),
    Column("cancelled_by", Words, nullable=False),
    # A planned moment is queued once; jobs of nobody's schedule have NULL, which is never equal.
    UniqueConstraint("schedule", "due"),
    Index(None, "queued"),
    Index(None, "state", "queued"),
    Index(None, "kind", "queued"),
    Index(None, "subject", "queued"),
    Index(None, "schedule", "queued"),
    Index(None, "kind", "subject", "queued"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("job", Words, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("time", Moment, nullable=False),
    Column("kind", Words, nullable=False),
    Column("text", Words, nullable=False),
)

schedules = Table(
    "schedules",
    metadata,
    Column("name", Words, primary_key=True),
    Column("recurrence", Json, nullable=False),
    Column("request", Json, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created", Moment, nullable=False),
    Column("changed", Moment, nullable=False),
    Column("next_due", Moment),
    Column("last_due", Moment),
    Column("caught_up", Integer, nullable=False),
    Index(None, "enabled", "next_due"),
)

audit = Table(
    "audit",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("time", Moment, nullable=False),
    Column("who", Words, nullable=False),
    Column("origin", Words, nullable=False),
    Column("action", Words, nullable=False),
    Column("target", Words, nullable=False),
    Column("before", Json),
    Column("after", Json),
    Column("reason", Words, nullable=False),
    Column("digest", Words, nullable=False),
)

# The newest entry once more, so that entries cut off at the end are missed; locked by whoever appends.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", Words, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("key", Words, nullable=False),
    Column("title", Words, nullable=False),
    Column("text", Words, nullable=False),
    Column("urgent", Boolean, nullable=False),
    Column("first_seen", Moment, nullable=False),
    Column("last_seen", Moment, nullable=False),
    Column("sent", Moment),
    Column("times_sent", Integer, nullable=False),
    Column("acknowledged", Moment),
    Column("acknowledged_by", Words, nullable=False),
    Column("ended", Moment),
    Index(
        "uq_alerts_open",
        "key",
        unique=True,
        sqlite_where=text("ended IS NULL"),
        postgresql_where=text("ended IS NULL"),
    ),
    Index(None, "key", "number"),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Words, primary_key=True),
    Column("text", Words, nullable=False),
)

proofs = Table(
    "proofs",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("backup", Words, nullable=False),
    Column("cluster", Words, nullable=False),
    Column("system_identifier", Words, nullable=False),
    Column("backup_time", Moment, nullable=False),
    Column("time", Moment, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("restore_seconds", Float(53), nullable=False),
    Column("checks", Json, nullable=False),
    Column("finding", Words, nullable=False),
    Column("source", Words, nullable=False),
    Column("host", Words, nullable=False),
    Column("job", Words, nullable=False),
    Index(None, "cluster", "time"),
    Index(None, "time"),
    # A job's proof is taken in once; one made without a job has no such name.
    Index(
        "uq_proofs_job",
        "job",
        "backup",
        unique=True,
        sqlite_where=text("job <> ''"),
        postgresql_where=text("job <> ''"),
    ),
)

clusters = Table(
    "clusters",
    metadata,
    Column("name", Words, primary_key=True),
    Column("system_identifier", Words, nullable=False),
    Column("server_version", Words, nullable=False),
    Column("size_bytes", BigInteger),
    Column("databases", Json, nullable=False),
    Column("newest_backup", Words, nullable=False),
    Column("newest_backup_time", Moment),
    Column("repository", Words, nullable=False),
    Column("seen", Moment),
)

repositories = Table(
    "repositories",
    metadata,
    Column("name", Words, primary_key=True),
    Column("url", Words, nullable=False),
    Column("repository_id", Words, nullable=False),
    Column("backups", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger),
    Column("free_bytes", BigInteger),
    Column("seen", Moment),
)

activity = Table(
    "activity",
    metadata,
    Column("cluster", Words, primary_key=True),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("transactions", Float(53), nullable=False),
    Column("samples", BigInteger, nullable=False),
)
