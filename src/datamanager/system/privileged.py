"""Stopping and starting services for an account that may not do it itself.

The supervisor, which is root, listens on a socket that root and the account of the jobs can reach; a job asks there.
One request a connection, one line of JSON each way:

    {"verb": "service-stop", "name": "records"}
    {"ok": true, "result": {"status": 0, "output": "", "seconds": 0.4, "problem": ""}}
    {"ok": false, "message": "stop service records: …", "hint": "…"}

The verbs are a fixed table, the names are those that root's own configuration describes, and the kernel says who asks:
whoever takes over the account of the jobs can stop and start those services, and nothing else. A caller that goes away
takes its command with it.

Source: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamanager.base.errors import DataManagerError, ServiceError
from datamanager.base.pipeline import StopToken
from datamanager.system.commands import CommandResult
from datamanager.system.services import Runner, Service, ServiceManager, ServiceState

VARIABLE = "DATAMANAGER_PRIVILEGED_SOCKET"
# A request is a verb and a name; an answer carries the end of what a command said.
_REQUEST_BYTES = 4096
_ANSWER_BYTES = 256 * 1024
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
# A look takes up to 15 s; more at once than jobs can run is someone's mischief.
_MOST_AT_ONCE = 8
_LOOK_SECONDS = 0.2
# A command whose caller has gone is ended within this time; see ``run_command``.
_ENDED_SECONDS = 12.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PrivilegedServer:
    """Answers requests in threads of its own until closed.

    Args:
        path: of the socket, in a folder that nobody but root can write.
        group_id: who may connect beside root.
        allowed_users: who is listened to.
        find: the manager of a service that may be acted on, by name; raises for any other. Called for each request, so
            that it may look at the configuration as it is now.
        executed: told of each command.
    """

    def __init__(
        self,
        path: Path,
        *,
        group_id: int,
        allowed_users: Collection[int],
        find: Callable[[str], ServiceManager],
        executed: Callable[[str], None],
    ) -> None:
        """Raises: OSError, when the socket cannot be made."""
        self._allowed = frozenset(allowed_users)
        self._find = find
        self._executed = executed
        self._slots = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._stop = StopToken()
        self._acting: dict[str, threading.Lock] = {}
        self._acting_lock = threading.Lock()
        self.path = path
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        os.chown(path, -1, group_id, follow_symlinks=False)
        path.chmod(0o660)
        self._listener.listen(_MOST_AT_ONCE)
        self._thread = threading.Thread(target=self._serve, name="privileged requests", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer; commands under way are ended."""
        self._stop.stop("serve: the service is about to end")
        self._thread.join(_REQUEST_SECONDS)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        deadline = time.monotonic() + _ENDED_SECONDS
        for _ in range(_MOST_AT_ONCE):
            if not self._slots.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                return
        self._stop.close()

    def _serve(self) -> None:
        while not self._stop.stopping:
            if not _readable(self._listener, self._stop):
                continue
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                if not self._slots.acquire(blocking=False):
                    connection.close()
                    continue
                threading.Thread(target=self._handle, args=(connection,), name="privileged", daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_REQUEST_SECONDS)
                connection.sendall(json.dumps(self._answer(connection)).encode() + b"\n")
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            line = _line(connection, _REQUEST_BYTES)  # before any answer: a caller who still writes would not read it
            if _peer_user(connection) not in self._allowed:
                return _refusal("ask service: this account may not", "Run it as root or as the account of the jobs.")
            request = json.loads(line)
            verb, name = str(request["verb"]), str(request["name"])
        except (ValueError, KeyError, TypeError):
            return _refusal("ask service: the request cannot be understood", "Install one release everywhere.")
        try:
            return {"ok": True, **self._act(connection, verb, name)}
        except DataManagerError as error:
            return _refusal(error.message, error.hint)
        except Exception as error:  # noqa: BLE001 - whatever a request does, the next one is answered
            return _refusal(f"ask service: unexpected {type(error).__name__}", "Look into the log of the service.")

    def _act(self, connection: socket.socket, verb: str, name: str) -> dict[str, Any]:
        """Raises: whatever ``find`` and the manager raise."""
        manager = self._find(name)
        match verb:
            case "service-limit":
                return {"seconds": manager.limit_seconds(name)}
            case "service-look":
                with self._alone(name):
                    return {"service": asdict(manager.look(name))}
            case "service-stop" | "service-start":
                with self._alone(name) as alone:
                    if not alone:
                        raise ServiceError(
                            f"{verb.removeprefix('service-')} service {name}: another command acts on it",
                            hint="Try again when that has ended.",
                        )
                    act = manager.stop if verb == "service-stop" else manager.start
                    return {"result": self._run(connection, lambda runner: act(name, runner))}
        raise ServiceError(f"ask service: there is no {verb!r}", hint="Install one release everywhere.")

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Let a command end first whose caller has just gone, or it would undo what is found or done now.

        Yields: False when it goes on: its caller is there.
        """
        with self._acting_lock:
            lock = self._acting.setdefault(name, threading.Lock())
        mine = lock.acquire(timeout=_ENDED_SECONDS)
        try:
            yield mine
        finally:
            if mine:
                lock.release()

    def _run(self, connection: socket.socket, act: Callable[[Runner], CommandResult]) -> dict[str, Any]:
        """Act, and give up when the caller goes away or the service ends."""
        with StopToken() as stop:
            done = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(connection, stop, done), name="caller", daemon=True)
            watcher.start()
            try:
                return asdict(act(Runner(stop, self._executed)))
            finally:
                done.set()
                watcher.join()

    def _watch(self, connection: socket.socket, stop: StopToken, done: threading.Event) -> None:
        while not done.is_set():
            if _readable(connection, self._stop, _LOOK_SECONDS) or self._stop.stopping:
                stop.stop("act on service: whoever asked for it has gone")
                return


class PrivilegedServices:
    """The services that the supervisor stops and starts for us. Thread-safe.

    Args: names - of the services that the configuration describes.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self._path = path
        self._names = frozenset(names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def limit_seconds(self, name: str) -> float:
        """Raises: ServiceError."""
        return float(self._ask("service-limit", name)["seconds"])

    def look(self, name: str) -> Service:
        """Raises: ServiceError."""
        values = self._ask("service-look", name)["service"]
        return Service(
            values["name"],
            ServiceState(values["state"]),
            values["title"],
            values["pid"],
            tuple(values["dependents"]),
            values["obstacle"],
        )

    def stop(self, name: str, runner: Runner) -> CommandResult:
        """Raises: ServiceError, Cancelled."""
        return self._run("service-stop", name, runner)

    def start(self, name: str, runner: Runner) -> CommandResult:
        """Raises: ServiceError, Cancelled."""
        return self._run("service-start", name, runner)

    def list(self) -> list[Service]:
        """Raises: ServiceError."""
        return [self.look(name) for name in sorted(self._names)]

    def _run(self, verb: str, name: str, runner: Runner) -> CommandResult:
        limit = self.limit_seconds(name) + _ANSWER_SECONDS
        values = self._ask(verb, name, runner.stop, limit)["result"]
        result = CommandResult(values["status"], values["output"], values["seconds"], values["problem"])
        told = f"{verb} {name} (by the service): {result.problem or 'done'} after {result.seconds:.1f} s"
        runner.executed(f"{told}\n{result.output}".strip())
        return result

    def _ask(
        self, verb: str, name: str, stop: StopToken | None = None, limit_seconds: float = _ANSWER_SECONDS
    ) -> Mapping[str, Any]:
        """Raises: ServiceError, Cancelled."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_REQUEST_SECONDS)
                connection.connect(str(self._path))
                connection.sendall(json.dumps({"verb": verb, "name": name}).encode() + b"\n")
                answered = _readable(connection, stop, limit_seconds)
                if stop is not None:
                    stop.check()
                if not answered:
                    raise TimeoutError(f"no answer within {limit_seconds:g} seconds")
                answer = json.loads(_line(connection, _ANSWER_BYTES))
        except (OSError, ValueError) as error:
            cause = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "no answer"
            raise ServiceError(
                f"{verb.replace('service-', '')} service {name}: the service of DataManager does not answer: {cause}",
                hint="Run `datamanager service status` to see whether it runs.",
            ) from error
        if not answer.get("ok"):
            raise ServiceError(str(answer.get("message")), hint=str(answer.get("hint")))
        found: Mapping[str, Any] = answer
        return found


def _readable(one: socket.socket, stop: StopToken | None, seconds: float | None = None) -> bool:
    """Wait until the socket has something to read, or stopping was asked for, or the time is over."""
    waited = [one.fileno()] + ([] if stop is None else [stop.fileno()])
    readable, _, _ = select.select(waited, [], [], seconds)
    return one.fileno() in readable


def _refusal(message: str, hint: str) -> dict[str, Any]:
    return {"ok": False, "message": message, "hint": hint}


def _line(connection: socket.socket, limit_bytes: int) -> bytes:
    """Raises: OSError (also where it takes too long in all), ValueError (longer than that, or cut)."""
    data, deadline = b"", time.monotonic() + _REQUEST_SECONDS
    while not data.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(min(limit_bytes, 65536))
        data += part
        if not part or len(data) > limit_bytes:
            raise ValueError("not a line")
    return data


def _peer_user(connection: socket.socket) -> int:
    """The account at the other end. Raises: OSError, where the kernel does not say."""
    if sys.platform != "linux":
        raise OSError("the system does not say who is at the other end")
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(user)
