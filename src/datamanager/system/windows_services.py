"""Windows' services, through sc.exe.

Its words are translated, so nothing is read but what is not: exit statuses, which are error codes of Windows, state
numbers, and the order of the lines. sc.exe only asks; whoever calls waits for the state.
Source: sc.exe (learn.microsoft.com, Windows commands); SERVICE_STATUS; System Error Codes 1000 to 1299.
"""

from __future__ import annotations

import re

from datamanager.base.errors import ServiceError
from datamanager.base.pipeline import StopToken
from datamanager.system.commands import CommandResult, run_command
from datamanager.system.services import Runner, Service, ServiceState, run_and_tell

_LIMIT_SECONDS = 150.0
_ANSWER_SECONDS = 20.0
_ANSWER_BYTES = 4 << 20
_ABSENT = 1060  # ERROR_SERVICE_DOES_NOT_EXIST
_ALREADY = {"start": 1056, "stop": 1062}  # ERROR_SERVICE_ALREADY_RUNNING, ERROR_SERVICE_NOT_ACTIVE
_EXPLAINED = {
    5: "access is denied",
    1051: "services that depend on it still run",
    1052: "it does not take that request",
    1053: "it did not answer in time",
    1058: "it is disabled",
    1061: "it does not take requests now",
    1069: "its account could not log on",
}
# The whole list in one answer; the largest buffer that EnumServicesStatusEx takes.
_BUFFER = "262144"
_STATE = re.compile(
    r"^\s+\S[^:]*:\s+([1-7])\s+"
    r"(?:STOPPED|START_PENDING|STOP_PENDING|RUNNING|CONTINUE_PENDING|PAUSE_PENDING|PAUSED)\b"
)
_PID = re.compile(r"^\s+PID\s*:\s+(\d+)\s*$")
_NAME = re.compile(r"^\S[^:\[\]]*: (.+?)\s*$")
_STATES = {
    1: ServiceState.STOPPED,
    2: ServiceState.STARTING,
    3: ServiceState.STOPPING,
    4: ServiceState.RUNNING,
    5: ServiceState.STARTING,
    6: ServiceState.RUNNING,
    7: ServiceState.RUNNING,
}


class WindowsServices:
    """The services of the machine. Thread-safe.

    Args: program - sc.exe; PowerShell's own ``sc`` is another thing, hence its whole name.
    """

    def __init__(self, program: str = "sc.exe") -> None:
        self._program = program

    def limit_seconds(self, name: str) -> float:
        return _LIMIT_SECONDS

    def look(self, name: str) -> Service:
        result = self._ask("queryex", name)
        # The number also stands in the text, in every language, wherever a status is cut to eight bits.
        if result.status == _ABSENT or (result.problem and re.search(rf"\b{_ABSENT}\b", result.output)):
            return Service(name, ServiceState.ABSENT)
        found = read_services(result.output)
        if result.problem or len(found) != 1:
            raise _no_answer(f"look at service {name}", result)
        depending = self._ask("enumdepend", name, _BUFFER)
        if depending.problem:
            raise _no_answer(f"look at service {name}", depending)
        one = found[0]
        return Service(
            one.name, one.state, one.title, one.pid, tuple(each.name for each in read_services(depending.output))
        )

    def stop(self, name: str, runner: Runner) -> CommandResult:
        return self._run("stop", name, runner)

    def start(self, name: str, runner: Runner) -> CommandResult:
        return self._run("start", name, runner)

    def list(self) -> list[Service]:
        # The blank after = belongs to sc.exe's grammar.
        result = self._ask("query", "type=", "service", "state=", "all", "bufsize=", _BUFFER)
        if result.problem:
            raise _no_answer("list services", result)
        return read_services(result.output)

    def _run(self, action: str, name: str, runner: Runner) -> CommandResult:
        words = (self._program, action, name)
        result = run_and_tell(words, f"sc {action} {name}", runner, limit_seconds=_ANSWER_SECONDS)
        if result.status == _ALREADY[action]:
            return CommandResult(0, result.output, result.seconds)
        cause = _EXPLAINED.get(result.status or 0)
        if cause is None:
            return result
        return CommandResult(result.status, result.output, result.seconds, f"{cause} (error {result.status})")

    def _ask(self, *words: str) -> CommandResult:
        with StopToken() as stop:
            return run_command(
                (self._program, *words), limit_seconds=_ANSWER_SECONDS, stop=stop, keep_bytes=_ANSWER_BYTES
            )


def _no_answer(purpose: str, result: CommandResult) -> ServiceError:
    return ServiceError(
        f"{purpose}: sc.exe: {result.explained or 'its answer was not understood'}",
        hint="Run `sc.exe queryex NAME` to see what it says.",
    )


def read_services(text: str) -> list[Service]:
    """Services from ``sc query``, ``sc queryex`` and ``sc enumdepend``, one a block.

    A block's first line is ``SERVICE_NAME: name``; a line with a state's number and word follows.
    """
    found: list[Service] = []
    names: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            names = []
        elif match := _NAME.match(line):
            names.append(match[1])
        elif (match := _STATE.match(line)) and names:
            found.append(Service(names[0], _STATES[int(match[1])], names[1] if len(names) > 1 else ""))
            names = []
        elif (match := _PID.match(line)) and found and match[1] != "0":
            last = found[-1]
            found[-1] = Service(last.name, last.state, last.title, int(match[1]))
    return found
