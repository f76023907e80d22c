from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import psutil
import pytest

from datamanager.system.processes import (
    ProcessIdentity,
    ancestors,
    end_tree,
    group_options,
    identify,
    is_alive,
    this_process,
)


@pytest.fixture
def shell() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        end_tree(process.pid, 0)
        process.communicate()


def begin(started: list[subprocess.Popen[bytes]], script: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, **group_options())
    started.append(process)
    return process


def below(process: subprocess.Popen[bytes], count: int) -> list[psutil.Process]:
    for _ in range(200):
        found = [one for one in psutil.process_iter() if one.pid != process.pid and _session(one) == process.pid]
        if len(found) >= count:
            return found
        time.sleep(0.02)
    raise AssertionError("they did not start")


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except OSError:
        return 0


def gone(processes: list[psutil.Process]) -> bool:
    return not [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_a_process_knows_itself_and_its_parents() -> None:
    assert is_alive(this_process())
    assert [one.pid for one in ancestors()][:2] == [os.getpid(), os.getppid()]


def test_an_identity_survives_json() -> None:
    assert is_alive(ProcessIdentity(**json.loads(json.dumps(asdict(this_process())))))


def test_another_process_with_the_same_number_is_not_alive() -> None:
    me = this_process()
    assert not is_alive(replace(me, started=me.started - 1))
    assert not is_alive(replace(me, boot="another boot"))
    assert not is_alive(ProcessIdentity(0, 0.0, me.boot))


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive(shell: list[subprocess.Popen[bytes]]) -> None:
    process = begin(shell, "exec sleep 1006")
    identity = identify(process.pid)
    assert identity is not None
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not is_alive(identity)
    assert identify(process.pid) is None


def test_ending_a_tree_ends_children_whose_parent_has_gone(shell: list[subprocess.Popen[bytes]]) -> None:
    process = begin(shell, "(sleep 1001 & sleep 1002 &); sleep 1003")
    children = below(process, 3)
    assert end_tree(process.pid, 2)
    assert gone(children)


def test_a_tree_that_ignores_the_question_is_killed(shell: list[subprocess.Popen[bytes]]) -> None:
    process = begin(shell, "trap '' TERM; sleep 1004 & while :; do sleep 0.05; done")
    children = below(process, 1)
    began = time.monotonic()
    assert end_tree(process.pid, 0.5)
    assert time.monotonic() - began < 5
    assert gone(children)


def test_a_process_that_is_asked_may_end_in_its_own_way(shell: list[subprocess.Popen[bytes]]) -> None:
    process = begin(shell, "trap 'echo tidied up; exit 0' TERM; echo ready; while :; do sleep 0.02; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert end_tree(process.pid, 5)
    assert process.stdout.read() == b"tidied up\n"


def test_ending_what_has_ended_does_nothing_to_others(shell: list[subprocess.Popen[bytes]]) -> None:
    process = begin(shell, "sleep 1005")
    identity = identify(process.pid)
    assert identity is not None
    assert end_tree(replace(identity, started=identity.started - 5), 0)
    assert process.poll() is None
    assert not end_tree(os.getpid(), 0)


def test_a_lower_priority_is_below_the_normal_one() -> None:
    script = (
        "import psutil; from datamanager.system.processes import lower_priority\n"
        "lower_priority(); print(psutil.Process().nice())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 10
