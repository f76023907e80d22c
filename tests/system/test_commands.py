from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datamanager.base.errors import Cancelled
from datamanager.base.pipeline import StopToken
from datamanager.base.redacting import redacted_output
from datamanager.system.commands import run_command, split_command
from datamanager.system.processes import ProcessIdentity, is_alive


@pytest.fixture
def stop() -> Iterator[StopToken]:
    with StopToken() as token:
        yield token


def sleeping(marker: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if marker in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_words_are_split_as_quoted_and_no_shell_reads_them(stop: StopToken) -> None:
    words = split_command("""printf '%s|' "a b" $HOME `id` '*' ; echo""")
    assert run_command(words, limit_seconds=5, stop=stop).output == "a b|$HOME|`id`|*|;|echo|"


def test_a_line_without_a_program_is_refused() -> None:
    for text in ("", "   ", "''"):
        with pytest.raises(ValueError, match="no program"):
            split_command(text)
    with pytest.raises(ValueError, match="quotation"):
        split_command("echo 'x")


def test_the_exit_status_and_the_last_line_explain_a_failure(stop: StopToken) -> None:
    result = run_command(["sh", "-c", "echo one; echo two >&2; exit 4"], limit_seconds=5, stop=stop)
    assert (result.status, result.explained) == (4, "exit status 4 (two)")
    assert run_command(["sh", "-c", "kill -9 $$"], limit_seconds=5, stop=stop).problem == "ended by signal 9"


def test_a_program_that_is_not_there_is_a_problem_not_a_crash(stop: StopToken, tmp_path: Path) -> None:
    assert "no program" in run_command(["/nowhere/at all"], limit_seconds=5, stop=stop).problem
    script = tmp_path / "broken"
    script.write_text("#!/nowhere/interpreter\n")
    script.chmod(0o755)
    assert run_command([str(script)], limit_seconds=5, stop=stop).problem


def test_a_command_past_its_limit_is_ended_with_its_children(stop: StopToken) -> None:
    began = time.monotonic()
    result = run_command(["sh", "-c", "sleep 2001 & sleep 2001"], limit_seconds=0.4, stop=stop, grace_seconds=0.5)
    assert result.problem == "it did not end within 0.4 seconds"
    assert time.monotonic() - began < 5
    assert not sleeping("2001")


def test_stopping_ends_a_command_with_its_children(stop: StopToken) -> None:
    threading.Timer(0.3, stop.stop, ["cancelled by Ada"]).start()
    with pytest.raises(Cancelled, match="Ada"):
        run_command(["sh", "-c", "sleep 2002 & sleep 2002"], limit_seconds=60, stop=stop)
    assert not sleeping("2002")


def test_what_a_command_leaves_running_is_not_waited_for_and_goes_on(stop: StopToken, tmp_path: Path) -> None:
    output = tmp_path / "said"
    began = time.monotonic()
    words = ["sh", "-c", "(sleep 0.6; echo later) & echo now"]
    assert run_command(words, limit_seconds=5, stop=stop, output=output).output == "now"
    assert time.monotonic() - began < 0.6
    while "later" not in output.read_text():
        assert time.monotonic() - began < 5
        time.sleep(0.05)


def test_a_command_takes_no_step_before_it_is_known(stop: StopToken, tmp_path: Path) -> None:
    known: list[tuple[ProcessIdentity, bool]] = []
    touched = tmp_path / "touched"

    def begun(process: ProcessIdentity) -> None:
        time.sleep(0.2)
        known.append((process, touched.exists()))

    assert run_command(["touch", str(touched)], limit_seconds=5, stop=stop, begun=begun).status == 0
    assert [seen for _, seen in known] == [False]
    assert touched.exists()
    assert not is_alive(known[0][0])


def test_a_command_that_cannot_be_written_down_takes_no_step(stop: StopToken, tmp_path: Path) -> None:
    def begun(process: ProcessIdentity) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        run_command(["touch", str(tmp_path / "touched")], limit_seconds=5, stop=stop, begun=begun)
    assert not (tmp_path / "touched").exists()


def test_a_gated_command_reads_nothing_from_us_and_keeps_its_words(stop: StopToken) -> None:
    result = run_command(
        ["sh", "-c", 'cat; printf "%s|" "$@"', "me", "$(id)", "a  b"], limit_seconds=5, stop=stop, begun=lambda _: None
    )
    assert result.output == "$(id)|a  b|"


def test_the_output_is_its_end_and_holds_no_secret(stop: StopToken) -> None:
    script = "seq 1 9000; echo postgres://ada:lovelace@host/db; echo PGPASSWORD=abc12345; echo it is tr0ub4dor"
    result = run_command(
        ["sh", "-c", script],
        limit_seconds=5,
        stop=stop,
        environment={"PATH": "/usr/bin:/bin", "DB_PASSWORD": "tr0ub4dor"},
    )
    assert len(result.output) <= 16 * 1024
    assert result.output.endswith("9000\npostgres://ada:***@host/db\nPGPASSWORD=***\nit is ***")


def test_short_words_in_variables_are_not_taken_for_secrets() -> None:
    assert redacted_output("a yes", {"SSH_ASKPASS_REQUIRE": "yes"}) == "a yes"


@pytest.mark.root
def test_root_runs_a_command_as_another_account(stop: StopToken) -> None:
    result = run_command(["sh", "-c", 'id -un; echo "$HOME"'], limit_seconds=5, stop=stop, user_id=65534)
    assert result.output.splitlines()[0] == "nobody"
