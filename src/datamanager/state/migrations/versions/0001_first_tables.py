"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Kinds of columns as they were in this release; datamanager.state.columns may change, this file never does.
Moment = sa.String(27).with_variant(TIMESTAMP(timezone=True), "postgresql")
Words = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", Words, nullable=False),
        sa.Column("kind", Words, nullable=False),
        sa.Column("arguments", Words, nullable=False),
        sa.Column("subject", Words, nullable=False),
        sa.Column("trigger", Words, nullable=False),
        sa.Column("who", Words, nullable=False),
        sa.Column("schedule", Words),
        sa.Column("due", Moment),
        sa.Column("heavy", sa.Boolean(), nullable=False),
        sa.Column("low_priority", sa.Boolean(), nullable=False),
        sa.Column("limit_seconds", sa.Float()),
        sa.Column("state", Words, nullable=False),
        sa.Column("queued", Moment, nullable=False),
        sa.Column("started", Moment),
        sa.Column("ended", Moment),
        sa.Column("host", Words, nullable=False),
        sa.Column("pid", sa.BigInteger()),
        sa.Column("pid_started", sa.Float(53)),
        sa.Column("heartbeat", Moment),
        sa.Column("progress", Words, nullable=False),
        sa.Column("exit_code", sa.BigInteger()),
        sa.Column("summary", Words, nullable=False),
        sa.Column("cause", Words, nullable=False),
        sa.Column("effect", Words, nullable=False),
        sa.Column("next_step", Words, nullable=False),
        sa.Column("result", Words, nullable=False),
        sa.Column("warnings", Words, nullable=False),
        sa.Column("log", Words, nullable=False),
        sa.Column("log_pinned", sa.Boolean(), nullable=False),
        sa.Column("cancelled_by", Words, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("schedule", "due", name="uq_jobs_schedule_due"),
    )
    op.create_index("ix_jobs_kind_queued", "jobs", ["kind", "queued"])
    op.create_index("ix_jobs_kind_subject_queued", "jobs", ["kind", "subject", "queued"])
    op.create_index("ix_jobs_queued", "jobs", ["queued"])
    op.create_index("ix_jobs_schedule_queued", "jobs", ["schedule", "queued"])
    op.create_index("ix_jobs_state_queued", "jobs", ["state", "queued"])
    op.create_index("ix_jobs_subject_queued", "jobs", ["subject", "queued"])
    op.create_table(
        "job_events",
        sa.Column("number", Number, nullable=False),
        sa.Column("job", Words, nullable=False),
        sa.Column("time", Moment, nullable=False),
        sa.Column("kind", Words, nullable=False),
        sa.Column("text", Words, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_job_events"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_events_job", ondelete="CASCADE"),
    )
    op.create_index("ix_job_events_job", "job_events", ["job"])
    op.create_table(
        "schedules",
        sa.Column("name", Words, nullable=False),
        sa.Column("recurrence", Words, nullable=False),
        sa.Column("request", Words, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created", Moment, nullable=False),
        sa.Column("changed", Moment, nullable=False),
        sa.Column("next_due", Moment),
        sa.Column("last_due", Moment),
        sa.Column("caught_up", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_schedules"),
    )
    op.create_index("ix_schedules_enabled_next_due", "schedules", ["enabled", "next_due"])
    op.create_table(
        "audit",
        sa.Column("number", Number, nullable=False, autoincrement=False),
        sa.Column("time", Moment, nullable=False),
        sa.Column("who", Words, nullable=False),
        sa.Column("origin", Words, nullable=False),
        sa.Column("action", Words, nullable=False),
        sa.Column("target", Words, nullable=False),
        sa.Column("before", Words),
        sa.Column("after", Words),
        sa.Column("reason", Words, nullable=False),
        sa.Column("digest", Words, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", Words, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.create_table(
        "alerts",
        sa.Column("number", Number, nullable=False),
        sa.Column("key", Words, nullable=False),
        sa.Column("title", Words, nullable=False),
        sa.Column("text", Words, nullable=False),
        sa.Column("urgent", sa.Boolean(), nullable=False),
        sa.Column("first_seen", Moment, nullable=False),
        sa.Column("last_seen", Moment, nullable=False),
        sa.Column("sent", Moment),
        sa.Column("times_sent", sa.Integer(), nullable=False),
        sa.Column("acknowledged", Moment),
        sa.Column("acknowledged_by", Words, nullable=False),
        sa.Column("ended", Moment),
        sa.PrimaryKeyConstraint("number", name="pk_alerts"),
    )
    op.create_index("ix_alerts_key_number", "alerts", ["key", "number"])
    op.create_index(
        "uq_alerts_open",
        "alerts",
        ["key"],
        unique=True,
        sqlite_where=sa.text("ended IS NULL"),
        postgresql_where=sa.text("ended IS NULL"),
    )
    op.create_table(
        "facts",
        sa.Column("name", Words, nullable=False),
        sa.Column("text", Words, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_facts"),
    )
    op.create_table(
        "proofs",
        sa.Column("number", Number, nullable=False),
        sa.Column("backup", Words, nullable=False),
        sa.Column("cluster", Words, nullable=False),
        sa.Column("system_identifier", Words, nullable=False),
        sa.Column("backup_time", Moment, nullable=False),
        sa.Column("time", Moment, nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("restore_seconds", sa.Float(53), nullable=False),
        sa.Column("checks", Words, nullable=False),
        sa.Column("finding", Words, nullable=False),
        sa.Column("source", Words, nullable=False),
        sa.Column("host", Words, nullable=False),
        sa.Column("job", Words, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_proofs"),
    )
    op.create_index("ix_proofs_cluster_time", "proofs", ["cluster", "time"])
    op.create_index("ix_proofs_time", "proofs", ["time"])
    op.create_index(
        "uq_proofs_job",
        "proofs",
        ["job", "backup"],
        unique=True,
        sqlite_where=sa.text("job <> ''"),
        postgresql_where=sa.text("job <> ''"),
    )
    op.create_table(
        "clusters",
        sa.Column("name", Words, nullable=False),
        sa.Column("system_identifier", Words, nullable=False),
        sa.Column("server_version", Words, nullable=False),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("databases", Words, nullable=False),
        sa.Column("newest_backup", Words, nullable=False),
        sa.Column("newest_backup_time", Moment),
        sa.Column("repository", Words, nullable=False),
        sa.Column("seen", Moment),
        sa.PrimaryKeyConstraint("name", name="pk_clusters"),
    )
    op.create_table(
        "repositories",
        sa.Column("name", Words, nullable=False),
        sa.Column("url", Words, nullable=False),
        sa.Column("repository_id", Words, nullable=False),
        sa.Column("backups", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger()),
        sa.Column("free_bytes", sa.BigInteger()),
        sa.Column("seen", Moment),
        sa.PrimaryKeyConstraint("name", name="pk_repositories"),
    )
    op.create_table(
        "activity",
        sa.Column("cluster", Words, nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("transactions", sa.Float(53), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cluster", "hour", name="pk_activity"),
    )
    op.execute(sa.text("INSERT INTO audit_head (id, number, digest) VALUES (1, 0, :none)").bindparams(none="0" * 64))
