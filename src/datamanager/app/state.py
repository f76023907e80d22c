"""Opening the state that the configuration names, unless it lies in a cluster that it protects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from psycopg.conninfo import make_conninfo

from datamanager.app.addresses import address_of
from datamanager.base.clock import Clock
from datamanager.base.errors import ConfigurationError, DataManagerError
from datamanager.base.pipeline import StopToken
from datamanager.config.home import Home, make_private_folder
from datamanager.config.model import ClusterConfig, Config
from datamanager.config.secret_files import read_secret_line
from datamanager.config.state_url import server_address, sqlite_url
from datamanager.jobs.intake import take_in
from datamanager.postgres.connection import ServerAddress, connect
from datamanager.postgres.replication import ReplicationSession
from datamanager.state.database import State, open_state
from datamanager.state.model import KnownCluster

# A cluster's server is asked once, and shortly: whether a state can be used must not hang on a machine that is off.
_ASK_SECONDS = 3


def open_configured(
    home: Home, config: Config, clock: Clock, stop: StopToken, executed: Callable[[str], None]
) -> State:
    """The state named by ``[state] url``, else the SQLite file of this home, with the runs that have ended meanwhile.

    The caller closes it.

    Args: executed - told what is asked of the clusters' servers.

    Raises: ConfigurationError, when its server is a cluster that is backed up here, or the address or a file is
        unfit; FormatUnsupported; StateUnavailable (retryable); StateError.
    """
    url = config.state.url
    if url is None:
        make_private_folder(home.state)
        url = sqlite_url(home.state_file)
    password = None
    if config.state.password_file is not None:
        password = read_secret_line(config.state.password_file, "password file")
    judge = _Judge(config.clusters, server_address(url), clock, stop, executed)
    state = open_state(url, clock=clock, password=password, judge_server=judge)
    try:
        judge.remember(state)
        take_in(home, state, clock)
    except BaseException:
        state.close()
        raise
    return state


class _Judge:
    """Refuses a server that is one of the configured clusters; those not known yet are asked who they are."""

    def __init__(
        self,
        clusters: Mapping[str, ClusterConfig],
        server: ServerAddress | None,
        clock: Clock,
        stop: StopToken,
        executed: Callable[[str], None],
    ) -> None:
        self._clusters = clusters
        self._server = server
        self._clock = clock
        self._stop = stop
        self._executed = executed
        self._asked: dict[str, str] = {}

    def __call__(self, identifier: str, known: Mapping[str, str]) -> None:
        """Raises: ConfigurationError."""
        for name, cluster in self._clusters.items():
            found = known.get(name) or self._ask(name, cluster)
            if found == identifier or (self._server is not None and _same_place(self._server, cluster)):
                raise ConfigurationError(
                    f"open state: state.url names a database in cluster {name}, which is backed up here; if that"
                    " cluster is lost, the history that is needed then is lost with it",
                    hint="Put it elsewhere: `datamanager config set state.url ''` takes a file of our own, or name"
                    " another PostgreSQL.",
                )

    def remember(self, state: State) -> None:
        """Keep what was asked, so that no server is asked twice."""
        for name, identifier in self._asked.items():
            known = state.known.cluster(name) or KnownCluster(name)
            state.known.put_cluster(replace(known, system_identifier=identifier))

    def _ask(self, name: str, cluster: ClusterConfig) -> str | None:
        """The cluster's system identifier; None when it cannot be asked now: then it is another one than answers."""
        try:
            address = address_of(cluster)
            timeout = {"connect_timeout": str(_ASK_SECONDS)} | address.parameters()
            brief = ServerAddress(make_conninfo("", **timeout), address.password)
            connection = connect(brief, stop=self._stop, replication=True)
            with ReplicationSession(connection, self._stop, self._clock, self._executed, _ASK_SECONDS) as session:
                identifier = session.query("IDENTIFY_SYSTEM")[0][0]
        except DataManagerError:
            self._stop.check()
            return None
        if identifier is not None:
            self._asked[name] = identifier
        return identifier


def _same_place(server: ServerAddress, cluster: ClusterConfig) -> bool:
    """Whether both addresses are spelled alike, for a cluster that does not say who it is."""
    return _place(server) == _place(ServerAddress(cluster.conninfo))


def _place(address: ServerAddress) -> tuple[str, str, str]:
    given = address.parameters()
    return given.get("host") or given.get("hostaddr") or "", given.get("port") or "5432", given.get("service") or ""
