"""The table of rows: by name, with the server that each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from benchmarks.ageing import dailies_row, old_row
from benchmarks.delta import delta_row
from benchmarks.increment_rows import churned_row, files_row, increment_row
from benchmarks.rows import full_row, memory_row, repeat_row, restore_row, start_row
from benchmarks.setting import RowResult, Setting
from benchmarks.wal_push import push_row


class Data(Enum):
    """What the row's server holds; rows of one kind share a server, so rows that change data come last."""

    STILL = "server"
    CHANGING = "changing"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class Row:
    """A row: ``usual`` ones are measured when none is named."""

    measure: Callable[[Setting], list[RowResult]]
    data: Data = Data.STILL
    usual: bool = True


ROWS: Mapping[str, Row] = {
    "full": Row(full_row),
    "repeat": Row(repeat_row),
    "restore": Row(restore_row),
    "delta": Row(delta_row, usual=False),
    "memory": Row(memory_row),
    "start": Row(start_row),
    "increment": Row(increment_row, Data.CHANGING, usual=False),
    "churned": Row(churned_row, Data.CHANGING, usual=False),
    "dailies": Row(dailies_row, Data.CHANGING, usual=False),
    "old": Row(old_row, Data.CHANGING, usual=False),
    "push": Row(push_row, Data.CHANGING, usual=False),
    "files": Row(files_row, Data.FILES, usual=False),
}
