from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import Cancelled, HookFailed, UsageError
from datamanager.base.events import Event, Executed
from datamanager.base.pipeline import StopToken
from datamanager.jobs.hooks import parse_hook, run_hook


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


def run(command: str, stop: StopToken, limit_seconds: float = 20, secret: str = "no secret") -> list[str]:
    """Run a hook; what the log is told."""
    told: list[Event] = []
    run_hook(
        parse_hook(command, "before"),
        "before",
        {"RESULT": "done", "BACKUP": "20261123T150412Z-1a2b3c4d"},
        limit_seconds=limit_seconds,
        stop=stop,
        listener=told.append,
        mask=lambda text: text.replace(secret, "***"),
    )
    return [event.text for event in told if isinstance(event, Executed)]


def script(folder: Path, text: str) -> str:
    path = folder / "hook of the office"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"'{path}'"


def sleepers(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_no_shell_reads_a_hook(stop: StopToken, tmp_path: Path) -> None:
    marker = tmp_path / "made by a shell"
    run(f"echo hello; touch '{marker}'", stop)
    run(f"echo $(touch '{marker}') > /dev/null", stop)
    assert not marker.exists()


def test_a_hook_is_told_how_the_job_went(stop: StopToken, tmp_path: Path) -> None:
    command = script(tmp_path, 'echo "$DATAMANAGER_RESULT $DATAMANAGER_BACKUP"')
    assert run(command, stop)[-1].splitlines()[-1] == "done 20261123T150412Z-1a2b3c4d"


def test_a_command_of_this_program_inside_of_a_hook_is_a_run_of_its_own(
    stop: StopToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAMANAGER_JOB", "the outer one")
    assert run(script(tmp_path, 'echo "[$DATAMANAGER_JOB]"'), stop)[-1].splitlines()[-1] == "[]"


def test_a_failure_says_which_command_and_what_it_said(stop: StopToken, tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match=r"run command before the job: .*: exit status 3 \(the disk is away\)"):
        run(script(tmp_path, "echo fine; echo the disk is away >&2; exit 3"), stop)


def test_a_hook_past_its_time_is_ended_with_all_it_began(stop: StopToken, tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match=r"it did not end within 0\.5 seconds"):
        run(script(tmp_path, "sleep 3001 & sleep 3001"), stop, limit_seconds=0.5)
    assert not sleepers("3001")


def test_a_cancel_ends_a_hook_and_all_it_began_within_ten_seconds(stop: StopToken, tmp_path: Path) -> None:
    threading.Timer(0.4, stop.stop, ["cancelled by Ada"]).start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="Ada"):
        run(script(tmp_path, "trap '' TERM; sleep 3002 & while :; do sleep 0.1; done"), stop)
    assert time.monotonic() - began < 10
    assert not sleepers("3002")


def test_the_log_holds_the_output_and_no_secret(
    stop: StopToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFICE_TOKEN", "t0ken-of-the-office")
    text = "echo mounted; echo open sesame; echo t0ken-of-the-office; echo postgres://a:b1b2@h; printenv OFFICE_TOKEN"
    told = "\n".join(run(f"{script(tmp_path, text)} --password=b1b2", stop, secret="open sesame"))
    assert "mounted" in told
    assert [word for word in ("open sesame", "t0ken-of-the-office", "b1b2") if word in told] == []


@pytest.mark.parametrize("command", ["/nowhere/at/all", "''", "'unclosed"])
def test_a_hook_that_cannot_be_run_is_refused_before_anything_begins(command: str) -> None:
    with pytest.raises(UsageError, match="read --after: "):
        parse_hook(command, "after")


def test_a_hook_gets_our_variables(stop: StopToken, tmp_path: Path) -> None:
    assert run(script(tmp_path, 'echo "$PATH"'), stop)[-1].splitlines()[-1] == os.environ["PATH"]
