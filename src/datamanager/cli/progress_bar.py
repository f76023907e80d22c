"""The bar on a terminal: phase, percent, bytes, speed, time left. Loaded only where there is a terminal."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from datamanager.base.meter import Reading
from datamanager.base.units import format_duration, format_size


class TerminalBar:
    """One line at the foot of the terminal. Not thread-safe: its console serializes the calls."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=Console(file=stream, highlight=False, markup=False),
            transient=True,
            refresh_per_second=5,
        )
        self._task: TaskID | None = None
        self._progress.start()

    def phase(self, phase: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(phase, total=None, numbers="")

    def show(self, reading: Reading) -> None:
        if self._task is None:
            return
        numbers = f"{format_size(reading.done_bytes)}  {format_size(reading.bytes_per_second)}/s"
        if reading.percent is not None:
            numbers = f"{reading.percent:3.0f} %  {numbers}"
        if reading.seconds_left is not None:
            numbers += f"  {format_duration(reading.seconds_left)} left"
        self._progress.update(
            self._task,
            completed=reading.percent or 0.0,
            total=None if reading.percent is None else 100.0,
            numbers=numbers,
        )

    def line(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        self._progress.stop()
