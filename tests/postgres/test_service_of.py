"""How a server is stopped and started is found out by looking at it, and it comes back as it ran."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from datamanager.base.errors import ServerDidNotStart
from datamanager.postgres.managers import Running, manager_of
from datamanager.postgres.postmaster import postmaster_of
from datamanager.postgres.server_control import DebianCluster, PgCtl, ServiceControl, control_of
from datamanager.postgres.service_of import find_control, options_in, service_in, unit_in
from datamanager.system.services import DescribedServices, ServiceCommands
from tests.conftest import NewServer
from tests.servers import hand_over, server_account

V2 = "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n"
V1 = "12:pids:/system.slice/x.scope\n1:name=systemd:/system.slice/postgresql.service\n0::/\n"


def test_a_unit_is_read_from_the_control_groups_of_a_process() -> None:
    assert unit_in(V2) == "postgresql@15-main.service"
    assert unit_in(V1) == "postgresql.service"
    for path in ("/", "/user.slice/user-1000.slice/session-3.scope", "/system.slice/docker-0a1b.scope",
                 "/user.slice/user-1000.slice/user@1000.service/app.slice/pg.service"):  # fmt: skip
        assert unit_in(f"0::{path}\n") is None


def test_a_windows_service_is_read_from_the_pg_ctl_above_the_server() -> None:
    words = (
        "C:\\Program Files\\PostgreSQL\\18\\bin\\pg_ctl.exe",
        "runservice",
        "-N",
        "postgresql-x64-18",
        "-D",
        "D:\\x",
    )
    assert service_in(words) == "postgresql-x64-18"
    assert service_in(("pg_ctl", "start", "-D", "/x")) is None
    assert service_in(("explorer.exe",)) is None


def test_options_are_read_from_what_the_server_left_whatever_is_in_them() -> None:
    text = (
        '/usr/lib/pg 15/bin/postgres "-D" "/var/lib/a b" "-c" "config_file=/etc/x y.conf" "-c" "a="/s"" "-p" "5433"\n'
    )
    assert options_in(text) == (
        "/usr/lib/pg 15/bin/postgres",
        ("-c", "config_file=/etc/x y.conf", "-c", 'a="/s"', "-p", "5433"),
    )
    assert options_in("/bin/postgres\n") == ("/bin/postgres", ())


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("/usr/bin/python3", "/usr/bin/patroni", "/etc/patroni.yml"), "Patroni"),
        (("/usr/bin/pg_autoctl", "run"), "pg_auto_failover"),
        (("/usr/sbin/pacemakerd",), "Pacemaker"),
        (("/usr/bin/repmgrd", "-f", "/etc/repmgr.conf"), "repmgr"),
    ],
)
def test_a_cluster_manager_is_known_by_its_process(tmp_path: Path, words: tuple[str, ...], name: str) -> None:
    found = manager_of(tmp_path, [Running(7, words)], [])
    assert found is not None
    assert found.name == name
    assert "--target" in found.remedy
    alone = manager_of(tmp_path, [], [Running(7, words)])
    assert (alone is not None) == (name in ("Pacemaker", "repmgr"))
    assert manager_of(tmp_path, [Running(1, ("/sbin/init", "patroni-is-a-word"))], []) is None


@pytest.mark.pg("15,18")
def test_a_server_started_by_hand_is_started_again_with_its_own_options(new_server: NewServer) -> None:
    server = new_server()
    found = find_control(server.data_directory, server.folder / "unused.log")
    assert found.running
    assert isinstance(found.control, PgCtl)
    assert found.control.log_file == server.log_file
    control = control_of(found.control.record())
    assert control == found.control
    said: list[str] = []
    control.stop(said.append, 30)
    control.stop(said.append, 30)
    assert not server.running
    down = find_control(server.data_directory, server.folder / "unused.log")
    assert not down.running
    assert isinstance(down.control, PgCtl)
    assert down.control.options == found.control.options
    down.control.start(said.append, 30)
    down.control.start(said.append, 30)
    assert server.value("select 1") == 1
    assert len([text for text in said if " start " in text]) == 1


def test_a_server_that_does_not_start_says_why(new_server: NewServer) -> None:
    server = new_server()
    control = find_control(server.data_directory, server.folder / "unused.log").control
    control.stop(lambda text: None, 30)
    server.configure(no_such_setting="1")
    with pytest.raises(ServerDidNotStart, match="configuration file"):
        control.start(lambda text: None, 30)


@pytest.mark.root
def test_a_service_that_commands_describe_stops_and_starts_its_server(new_server: NewServer, open_folder: Path) -> None:
    server = new_server(start=False)
    owned = server_account()
    pg_ctl = [str(server.bin / "pg_ctl"), "-D", str(server.data_directory)]
    options = f"-c port={server.port} -c unix_socket_directories={server.folder} -c listen_addresses="
    commands = ServiceCommands(
        (*pg_ctl, "start", "-w", "-l", str(server.log_file), "-o", options),
        (*pg_ctl, "stop", "-m", "fast"),
        ("/bin/sh", "-c", f"{shlex.join(pg_ctl)} status >/dev/null || exit 3"),
        60,
    )
    services = DescribedServices({"pg": commands}, open_folder / "output", None if owned is None else owned.uid)
    found = find_control(server.data_directory, server.folder / "unused.log", manager=services, service="pg")
    assert isinstance(found.control, ServiceControl)
    assert not found.running
    control = control_of(found.control.record(), services)
    control.start(lambda text: None, 30)
    assert server.value("select 1") == 1
    control.stop(lambda text: None, 30)
    assert postmaster_of(server.data_directory) is None


@pytest.mark.root
@pytest.mark.pg("15-debian")
def test_a_cluster_of_debian_is_stopped_and_started_by_its_own_tools(
    new_server: NewServer, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_server(start=False)
    root = open_folder / "etc"
    folder = root / "15" / "dmtest"
    folder.mkdir(parents=True)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.move(server.data_directory / name, folder / name)
    with (folder / "postgresql.conf").open("a") as file:
        file.write(
            f"data_directory = '{server.data_directory}'\nhba_file = '{folder}/pg_hba.conf'\n"
            f"ident_file = '{folder}/pg_ident.conf'\nport = {server.port}\nlisten_addresses = ''\n"
            f"unix_socket_directories = '{server.folder}'\nexternal_pid_file = ''\n"
        )
    (folder / "start.conf").write_text("auto\n")
    hand_over(root)
    monkeypatch.setenv("PG_CLUSTER_CONF_ROOT", str(root))
    control = DebianCluster(server.data_directory, "15", "dmtest")
    said: list[str] = []
    control.start(said.append, 30)
    try:
        assert server.value("select 1") == 1
        found = find_control(server.data_directory, server.folder / "unused.log")
        assert found.control == control
        assert control_of(found.control.record()) == control
        control.stop(said.append, 30)
        assert postmaster_of(server.data_directory) is None
        assert find_control(server.data_directory, server.folder / "unused.log").control == control
    finally:
        control.stop(said.append, 30)
        log = Path("/var/log/postgresql/postgresql-15-dmtest.log")
        log.unlink(missing_ok=True)
