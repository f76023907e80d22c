"""The words of ``wal push`` that are read without click, and those that are left to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from datamanager.cli import wal_push
from datamanager.cli.main import main
from datamanager.cli.wal_push_call import plain_words


@pytest.mark.parametrize(
    "words",
    [
        "pg_wal/1 --cluster office",
        "--cluster office pg_wal/1",
        "pg_wal/1 --json --cluster office --repo usb",
        "--repo usb --cluster office --json /srv/pg_wal/1",
    ],
)
def test_plain_words_mean_what_the_command_line_takes_them_for(words: str) -> None:
    given = wal_push.push.make_context("push", words.split()).params
    plain = plain_words(["wal", "push", *words.split()])
    assert plain == (given["path"], given["cluster"], given["repository"], given["json_lines"])


@pytest.mark.parametrize(
    "words",
    [
        "wal push pg_wal/1 --cluster=office",
        "wal push -- pg_wal/1 --cluster office",
        "wal push pg_wal/1 --cluster --repo",
        "wal push pg_wal/1 --cluster office --cluster shop",
        "wal push pg_wal/1 pg_wal/2 --cluster office",
        "wal push pg_wal/1 --cluster office --help",
        "wal push pg_wal/1 --cluster office --clutter",
        "wal push pg_wal/1 --cluster",
        "wal push pg_wal/1",
        "wal push --cluster office",
        "wal push",
        "wal status office",
        "",
    ],
)
def test_other_words_are_left_to_the_command_line(words: str) -> None:
    assert plain_words(words.split()) is None
    assert plain_words([*words.split(), ""]) is None


def test_a_mistyped_push_says_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["wal", "push", "pg_wal/1"])
    assert ended.value.code == 2
    assert "missing option '--cluster'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor needs no further threads")
def test_no_command_begins_threads_of_linear_algebra() -> None:
    program = (
        "import contextlib, os\n"
        "from datamanager.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['--version'])\n"
        "import numpy; print(len(os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[-1] == "1"
