"""The readiness check: what would make a restore fail, or its result differ, is said before anything is copied."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamanager.base.errors import TargetUnfit
from datamanager.base.units import format_size
from datamanager.engine.readiness.check import ReadinessOptions, Use, check_readiness, facts_of
from datamanager.engine.readiness.collations import check_collations, local_versions
from datamanager.engine.readiness.finding import Finding, Level, is_ready, space_needed_for_unknown
from datamanager.engine.readiness.locales import check_locales, has_locale
from datamanager.engine.readiness.place import check_account, check_port, check_space
from datamanager.engine.readiness.software import check_libraries, check_programs, has_extension
from datamanager.engine.restore.delta import DeltaOptions, plan_delta
from datamanager.engine.restore.plan import RestoreOptions, VolumeNeed
from datamanager.postgres.account import UnixAccount
from datamanager.postgres.facts_model import CollationFact, DatabaseFact, ExtensionFact, ServerFacts
from datamanager.repository.damaged import DamagedItem, record
from datamanager.repository.manifest import Manifest, Tablespace
from tests.conftest import NewServer
from tests.engine.conftest import Works, account, programs_of
from tests.rescue.build import Maker
from tests.servers import binaries, free_port

PAGE = 8192
WANTED = ("key", "backup", "damage")


def by_code(findings: Sequence[Finding]) -> dict[str, Level]:
    """The worst answer to each question."""
    order = list(Level)
    found: dict[str, Level] = {}
    for one in findings:
        found[one.code] = max(found.get(one.code, Level.OK), one.level, key=order.index)
        assert re.match(r"[A-Z/].*\.$", one.sentence), one
        assert (one.level is Level.OK) == (one.remedy == ""), one
    return found


def only(findings: Sequence[Finding], code: str) -> Finding:
    (found,) = [one for one in findings if one.code == code]
    return found


def stub_facts() -> dict[str, Any]:
    """Of a server of which little is known."""
    return {"operating_system": "Linux", "architecture": "x86_64"}


def check(works: Works, manifest: Manifest, version: str, **options: Any) -> list[Finding]:
    given: dict[str, Any] = {"restore": RestoreOptions(works.folder / "new"), "account": account()}
    wanted = ReadinessOptions(**given | {"install_path": binaries(version)} | options)
    return check_readiness(works.reopened(), manifest, wanted)


# -- a real backup of a real server -----------------------------------------------------------------------------------


@pytest.mark.pg("15-debian,18")
@pytest.mark.requirement("N10")
@pytest.mark.requirement("R77")
def test_a_machine_that_has_everything_is_ready_and_what_it_lacks_is_named(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server(config={"shared_preload_libraries": "auto_explain"})
    server.sql("create extension pgcrypto")
    server.tablespace("fast")
    server.sql("create table there tablespace fast as select generate_series(1, 9999) n")
    manifest = works.back_up(server).manifest
    mapped = {manifest.tablespaces[0].location: works.folder / "ts"}
    fit = RestoreOptions(works.folder / "new", mapped)
    ready = check(works, manifest, pg_version, restore=fit, port=free_port())
    assert set(by_code(ready).values()) == {Level.OK}
    assert set(by_code(ready)) == {
        *("key", "backup", "damage", "system", "programs", "version", "preload", "extensions", "collation"),
        *("locale", "target", "tablespace", "space", "owner", "port"),
    }  # requirement N10
    assert is_ready(ready)
    need = format_size(sum(manifest.volumes.values()))
    assert f"needs {need}, its volume has" in only(ready, "space").sentence  # requirement R77
    assert not (works.folder / "new").exists()
    server_facts = {**manifest.server, "shared_preload_libraries": "auto_explain, timescaledb", "architecture": "s390x"}
    other = replace(manifest, version=f"{manifest.major}.999", server=server_facts)
    needed = ["000000010000000000000003", "000000010000000000000004", "000000010000000000000005"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        unready = check(
            works,
            other,
            pg_version,
            port=taken.getsockname()[1],
            wal_needed=needed,
            wal_present=needed[:1],
            more_bytes={works.folder: 1 << 60},
        )
    assert {code: level for code, level in by_code(unready).items() if level is not Level.OK} == {
        "wal": Level.BLOCKING,
        "system": Level.BLOCKING,
        "version": Level.WARNING,
        "preload": Level.BLOCKING,
        "tablespace": Level.BLOCKING,  # where it was, production's lies
        "space": Level.BLOCKING,
        "port": Level.BLOCKING,
    }
    assert needed[1] in only(unready, "wal").sentence
    assert "timescaledb" in only(unready, "preload").sentence
    assert not is_ready(unready)


def test_a_delta_restore_is_judged_by_its_own_plan(new_server: NewServer, works: Works, pg_version: str) -> None:
    server = new_server()
    manifest = works.back_up(server).manifest

    def plan() -> Sequence[VolumeNeed]:
        return plan_delta(works.reopened(), manifest, DeltaOptions(server.data_directory)).volumes

    options = RestoreOptions(server.data_directory)
    running = check(works, manifest, pg_version, restore=options, plan=plan)
    assert only(running, "target").level is Level.BLOCKING
    assert "a server runs" in only(running, "target").sentence.lower()
    server.stop()
    stopped = check(works, manifest, pg_version, restore=options, plan=plan)
    assert is_ready(stopped)
    assert only(stopped, "space").level is Level.OK


@pytest.mark.pg("15-debian,18")
def test_versions_of_collations_are_those_that_a_server_on_this_machine_tells(
    new_server: NewServer, works: Works, pg_version: str
) -> None:
    server = new_server()
    versions = local_versions(programs_of(pg_version, server.major))
    told = dict(
        server.sql(
            "select collname, pg_collation_actual_version(oid) from pg_collation "
            " where collversion <> '' and collprovider <> 'b'"
        )
    )
    libc = {version for name, version in told.items() if not name.endswith("-x-icu")}
    assert libc <= {versions("libc", "")}
    asked = {name: versions("icu", name.removesuffix("-x-icu")) for name in told if name.endswith("-x-icu")}
    assert asked == {name: version for name, version in told.items() if name in asked}
    assert bool(asked) == (pg_version == "15-debian")


# -- one question at a time -------------------------------------------------------------------------------------------


def database(name: str = "clinic", **given: Any) -> DatabaseFact:
    least = {"oid": 5, "owner": "o", "encoding": "UTF8", "locale_provider": "libc", "collate": "de_DE.UTF-8"}
    return DatabaseFact(**{"name": name, "ctype": "de_DE.UTF-8", "looked_into": True, **least, **given})


def facts(*databases: DatabaseFact, **given: Any) -> ServerFacts:
    return ServerFacts("17.2", 170002, 17, 1, databases=databases, **given)


def test_text_that_sorts_differently_or_nobody_knows_how_is_warned_of() -> None:
    def here(provider: str, locale: str) -> str | None:
        return {"libc": "2.36", "icu": "153.120"}.get(provider)

    icu = CollationFact('pg_catalog."de-x-icu"', "icu", "153.112")
    own = CollationFact("public.mine", "icu", "153.120")
    cases: dict[str, tuple[DatabaseFact, Level, str]] = {
        "same": (database(collation_version="2.36"), Level.OK, ""),
        "older": (database(collation_version="2.31"), Level.WARNING, "database clinic (libc 2.31, here 2.36)"),
        "not recorded": (database(), Level.UNKNOWN, "not known for database clinic"),
        "bytes": (database(collate="C"), Level.OK, ""),
        "code points": (database(collate="C.UTF-8"), Level.OK, ""),
        "builtin": (database(locale_provider="builtin", locale="C.UTF-8", collation_version="1"), Level.OK, ""),
        "icu": (database(locale_provider="icu", locale="de", collation_version="153.120"), Level.OK, ""),
        "of a column": (database(collate="C", collations=(icu,)), Level.WARNING, "de-x-icu"),
        "somebody's own": (
            database(collate="C", collations=(own,)),
            Level.UNKNOWN,
            "not known for collation public.mine",
        ),
        "closed": (database(collate="C", looked_into=False), Level.UNKNOWN, "collations in clinic"),
    }
    for name, (one, level, text) in cases.items():
        (found,) = check_collations(facts(one), here)
        assert (found.code, found.level) == ("collation", level), name
        assert text in found.sentence, name
    (nothing,) = check_collations(facts(), here)
    assert nothing.level is Level.UNKNOWN
    (elsewhere,) = check_collations(facts(database(collation_version="2.36")), lambda provider, locale: None)
    assert elsewhere.level is Level.UNKNOWN


def test_a_locale_that_is_not_here_blocks_and_names_its_database() -> None:
    own = database("practice", collate="xx_XX.UTF-8", ctype="C")
    (found,) = check_locales(facts(database(collate="C", ctype="POSIX"), own), has_locale)
    assert (found.code, found.level) == ("locale", Level.BLOCKING)
    assert "xx_XX.UTF-8" in found.sentence
    assert "practice" in found.sentence
    assert check_locales(facts(own), lambda name: None) == []


def test_a_locale_is_in_the_way_where_somebody_connects_at_once_and_else_a_warning(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)

    def answers(*databases: DatabaseFact) -> dict[Use, Level]:
        server = {**stub_facts(), "databases": json.loads(facts(*databases).to_json())["databases"]}
        manifest = maker.backup({b"PG_VERSION": b"17\n"}, alter={"server": server})
        return {
            use: by_code(
                check_readiness(maker.repository, manifest, ReadinessOptions(RestoreOptions(tmp_path / "new"), use))
            )["locale"]
            for use in Use
        }

    plain = database("postgres", collate="C", ctype="C")
    lost = database("clinic", collate="xx_XX.UTF-8", ctype="C")
    elsewhere = answers(plain, lost)
    assert elsewhere == {Use.FILES: Level.WARNING, Use.CLONE: Level.WARNING, Use.SERVER: Level.BLOCKING}
    everywhere = answers(replace(lost, name="postgres"), lost)
    assert everywhere == {Use.FILES: Level.WARNING, Use.CLONE: Level.BLOCKING, Use.SERVER: Level.BLOCKING}


@pytest.mark.pg("18")
def test_libraries_that_are_missing_block_only_where_the_server_would_not_start(pg_version: str) -> None:
    programs = programs_of(pg_version, 18)
    assert has_extension(programs, "plpgsql")
    assert not has_extension(programs, "postgis")
    described = database(extensions=(ExtensionFact("plpgsql", "1.0"), ExtensionFact("postgis", "3.4")))
    extensions = only(check_libraries(facts(described), programs), "extensions")
    assert (extensions.level, "postgis" in extensions.sentence) == (Level.WARNING, True)
    assert "plpgsql" not in extensions.sentence
    assert only(check_libraries(facts(database(looked_into=False)), programs), "extensions").level is Level.UNKNOWN
    assert only(check_libraries(facts(database()), programs), "extensions").level is Level.OK
    preloaded = check_libraries(facts(database(), shared_preload_libraries='"citus", auto_explain'), programs)
    assert only(preloaded, "preload").level is Level.BLOCKING
    assert "auto_explain" not in only(preloaded, "preload").sentence


def test_programs_of_another_major_block(tmp_path: Path) -> None:
    manifest = Maker(tmp_path / "repository", open_slot=True).backup({b"PG_VERSION": b"17\n"})
    programs, found = check_programs(manifest.major, manifest.version, tmp_path, account())
    assert programs is None
    assert [(one.code, one.level) for one in found] == [("programs", Level.BLOCKING)]
    assert found[0].remedy


def test_room_is_shown_for_every_volume_and_what_is_missing_offers_another_place(tmp_path: Path) -> None:
    volumes = [VolumeNeed(tmp_path / "data", 3 << 30, 1 << 30), VolumeNeed(Path("/mnt/fast"), 1 << 20, 1 << 30)]
    data, fast = check_space(volumes)
    assert (data.level, fast.level) == (Level.BLOCKING, Level.OK)
    assert "3.0 GiB" in data.sentence
    assert "1.0 GiB free" in data.sentence
    assert "bigger volume" in data.remedy
    assert "nothing has been touched" in data.remedy
    assert space_needed_for_unknown(3 * 10**9) == 21 * 10**9
    assert "There is room on" not in check_space([VolumeNeed(tmp_path, 1 << 62, 0)])[0].remedy


def test_a_taken_port_blocks_and_a_free_one_stays_free() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        (taken,) = check_port(port)
        assert taken.level is Level.BLOCKING
    (free,) = check_port(port)
    assert free.level is Level.OK
    assert check_port(port)[0].level is Level.OK
    assert check_port(None) == []


@pytest.mark.skipif(sys.platform == "win32", reason="accounts of Unix")
def test_an_account_that_does_not_get_to_the_target_blocks(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (stranger,) = check_account(closed / "new", UnixAccount("stranger", 54321, 54321))
    assert (stranger.code, stranger.level) == ("owner", Level.BLOCKING)
    assert "stranger" in stranger.sentence
    (own,) = check_account(closed / "new", UnixAccount("us", os.geteuid() or 54321, 54321))
    assert own.level is (Level.OK if os.geteuid() else Level.BLOCKING)


@pytest.mark.requirement("R76", missing="the button itself")
def test_a_backup_that_is_not_all_there_or_known_to_be_damaged_is_not_offered(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    manifest = maker.backup({b"base/5/1": os.urandom(50 * PAGE)}, alter={"server": stub_facts()})

    def answers(one: Manifest = manifest) -> Mapping[str, Level]:
        options = ReadinessOptions(RestoreOptions(tmp_path / "new"))
        return by_code([one for one in check_readiness(maker.repository, one, options) if one.code in WANTED])

    assert answers() == {"key": Level.OK, "backup": Level.OK, "damage": Level.OK}
    pack = next(one for one in (tmp_path / "repository" / "packs").rglob("*") if one.is_file())
    kept = pack.read_bytes()
    pack.unlink()
    assert answers() == {"key": Level.OK, "backup": Level.BLOCKING}
    pack.write_bytes(kept)
    name = pack.relative_to(tmp_path / "repository").as_posix()
    record(maker.repository, [DamagedItem(name, (1,), "a flipped bit")])
    assert answers()["damage"] is Level.BLOCKING


def test_a_tablespace_that_lies_where_it_cannot_be_is_named(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    live = tmp_path / "live"
    (live / "PG_17_202406281").mkdir(parents=True)
    spaces = [Tablespace(16385, str(live), 10)]
    manifest = maker.backup({b"PG_VERSION": b"17\n"}, alter={"tablespaces": spaces, "server": stub_facts()})
    found = check_readiness(maker.repository, manifest, ReadinessOptions(RestoreOptions(tmp_path / "new")))
    assert only(found, "tablespace").level is Level.BLOCKING
    assert only(found, "target").level is Level.OK


def test_what_a_backup_does_not_say_is_no_obstacle(tmp_path: Path) -> None:
    manifest = Maker(tmp_path / "repository", open_slot=True).backup({b"PG_VERSION": b"17\n"}, alter={"server": {}})
    assert facts_of(manifest).databases == ()
    assert facts_of(manifest).system_identifier == int(manifest.system_identifier)


def test_every_refusal_of_a_plan_becomes_a_finding(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository", open_slot=True)
    manifest = maker.backup({b"PG_VERSION": b"17\n"}, alter={"server": stub_facts()})

    def plan() -> Sequence[VolumeNeed]:
        raise TargetUnfit("restore backup: the moon is full", hint="Wait two weeks.")

    options = ReadinessOptions(RestoreOptions(tmp_path), plan=plan)
    found = only(check_readiness(maker.repository, manifest, options), "target")
    assert (found.level, found.sentence, found.remedy) == (Level.BLOCKING, "The moon is full.", "Wait two weeks.")
