"""Backups as people read them and as programs get them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from datamanager.app.backups import Listed
from datamanager.base.units import format_duration, format_size
from datamanager.postgres.outside_model import OutsideFile
from datamanager.repository.manifest import Manifest


def fields(manifest: Manifest) -> dict[str, Any]:
    """What every result about a backup holds."""
    return {
        "backup_id": manifest.backup,
        "cluster": manifest.cluster,
        "name": manifest.label,
        "started": manifest.started,
        "ended": manifest.ended,
        "method": manifest.method,
        "reason": manifest.reason,
        "parent": manifest.parent,
        "version": manifest.version,
        "system_identifier": str(manifest.system_identifier),
        "timeline": manifest.timeline,
        "start_lsn": manifest.start_lsn,
        "stop_lsn": manifest.stop_lsn,
        "files": manifest.files,
        "total_bytes": manifest.total_bytes,
        "bytes_read": manifest.bytes_read,
        "bytes_stored": manifest.bytes_stored,
        "bytes_reused": manifest.bytes_reused,
        "bytes_resumed": manifest.bytes_resumed,
        "pages_changed": manifest.pages_changed,
        "audit": manifest.audit,
        "damaged": manifest.damaged,
        "cold": manifest.cold,
    }


def how_it_was_read(manifest: Manifest) -> str:
    """Why the backup took as long as it did, and what was spared."""
    if manifest.method == "native":
        what = "Nothing changed" if not manifest.pages_changed else f"{manifest.pages_changed} pages changed"
        text = f"{what} since backup {manifest.parent}; only that was read."
    else:
        text = f"Everything was read: {manifest.reason or 'this release did not say why'}."
    if manifest.bytes_resumed:
        text += f" {format_size(manifest.bytes_resumed)} had been stored by a backup that was interrupted."
    return text


def full(one: Listed) -> dict[str, Any]:
    """Everything known of a backup but its layers."""
    manifest = one.manifest
    return {
        **fields(manifest),
        "repository": one.repository,
        "checked": one.checked,
        "program": manifest.program,
        "page_size": manifest.page_size,
        "checksums": manifest.checksums,
        "tablespaces": [asdict(each) for each in manifest.tablespaces],
        "volumes": manifest.volumes,
        "checksum_failures": [asdict(each) for each in manifest.checksum_failures],
        "backup_warnings": list(manifest.warnings),
        "marks": [
            {"name": mark.name, "time": mark.time, **({"note": mark.note} if mark.note else {})} for mark in one.marks
        ],
        "pinned": one.pin is not None,
        "pin_note": one.pin.note if one.pin else None,
        "deleted": one.deleted.time if one.deleted else None,
        "server": manifest.server,
        "control": manifest.control,
        "outside_files": [
            {"path": each.path, "bytes": each.size, "kept": each.content is not None} for each in manifest.outside
        ],
    }


def outside_line(file: OutsideFile) -> str:
    """One configuration file from outside the data directory, never its content."""
    return f"{file.path} ({file.left_out or format_size(file.size)})"


def local_time(text: str) -> str:
    """A stored time in this computer's zone: ``2026-11-23 15:04 CET``."""
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M %Z}"


def duration(manifest: Manifest) -> str:
    """How long the backup took; its times are stored to the second."""
    seconds = (datetime.fromisoformat(manifest.ended) - datetime.fromisoformat(manifest.started)).total_seconds()
    return format_duration(seconds) if seconds >= 1 else "under 1 s"


_HEAD = ("WHEN", "CLUSTER", "NAME", "SIZE", "NEW DATA", "TOOK", "CHECKED", "WHERE", "ID")


def table(found: Sequence[Listed]) -> str:
    """One line a backup, and a line below it for each of its warnings."""
    if not found:
        return "No backups yet. Make one with `datamanager backup run CLUSTER`."
    rows = [_HEAD, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number:
            lines += [f"    {text}" for text in said_of(found[number - 1])]
            lines += [f"    warning: {text}" for text in found[number - 1].manifest.warnings]
    return "\n".join(lines)


def said_of(one: Listed) -> list[str]:
    """That it is pinned or deleted, since when and why."""
    said = []
    for word, mark in (("pinned", one.pin), ("deleted", one.deleted)):
        if mark is not None:
            said.append(f"{word} {local_time(mark.time)}{f': {mark.note}' if mark.note else ''}")
    return said


def _row(one: Listed) -> tuple[str, ...]:
    manifest = one.manifest
    return (
        local_time(manifest.started),
        manifest.cluster,
        manifest.label,
        format_size(manifest.total_bytes),
        format_size(manifest.bytes_stored),
        duration(manifest),
        local_time(one.checked) if one.checked else "not yet",
        one.repository,
        manifest.backup,
    )


def details(one: Listed) -> str:
    """One backup, a line a fact."""
    manifest = one.manifest
    facts = [
        ("Backup", manifest.backup),
        ("Name", manifest.label),
        ("Cluster", f"{manifest.cluster} (system identifier {manifest.system_identifier})"),
        ("Repository", one.repository),
        ("Made", f"{local_time(manifest.started)}, took {duration(manifest)}"),
        ("Server", f"PostgreSQL {manifest.version}, data checksums {'on' if manifest.checksums else 'off'}"),
        ("Size", f"{format_size(manifest.total_bytes)} in {manifest.files} files"),
        ("New data", f"{format_size(manifest.bytes_stored)} stored, {format_size(manifest.bytes_reused)} known before"),
        ("Read", how_it_was_read(manifest)),
        ("WAL", f"timeline {manifest.timeline}, {manifest.start_lsn} to {manifest.stop_lsn}"),
        ("Checked", local_time(one.checked) if one.checked else "not yet"),
        *(("Tablespace", f"{each.oid} at {each.location}") for each in manifest.tablespaces),
        *((("Cold", f"taken while the server did not run: {manifest.control['state']}"),) if manifest.cold else ()),
        *(("Outside", outside_line(each)) for each in manifest.outside),
        *(("Damaged", f"{each.path}, blocks {each.blocks}") for each in manifest.checksum_failures),
        *(("Marked", text) for text in said_of(one)),
        *(("Warning", text) for text in manifest.warnings),
    ]
    return "\n".join(f"{name + ':':<12}{value}" for name, value in facts)
