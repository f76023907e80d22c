"""Real PostgreSQL servers for the tests.

server      fixture: the shared server of one version, for tests that leave it as it was
new_server  fixture: makes servers of a test's own, gone at its end
adopt       starts a restored data directory
proxy       fixture: a TCP proxy in front of a server that can cut, stall and delay
"""

from tests.servers.account import can_enter, hand_over, make_folder, process_options, remove_folder, server_account
from tests.servers.binaries import EXTRAS, MAJORS, BinariesMissing, binaries, major_of, select
from tests.servers.load import Load
from tests.servers.processes import ProgramFailed, environment, free_port, run_program
from tests.servers.proxy import Proxy
from tests.servers.server import Server, adopt, copy_data_directory, create

__all__ = [
    "EXTRAS",
    "MAJORS",
    "BinariesMissing",
    "Load",
    "ProgramFailed",
    "Proxy",
    "Server",
    "adopt",
    "binaries",
    "can_enter",
    "copy_data_directory",
    "create",
    "environment",
    "free_port",
    "hand_over",
    "major_of",
    "make_folder",
    "process_options",
    "remove_folder",
    "run_program",
    "select",
    "server_account",
]
