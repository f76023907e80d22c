"""The printed kit and README.txt say what a person needs, and no more than that."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from datamanager.base.units import Secret
from datamanager.repository.keys import Slot, SlotSecret
from datamanager.rescue import ServerNeeds, readme_text
from datamanager.rescue.kit import KitPage, recovery_kit
from tests.rescue.build import Maker

REPOSITORY = bytes(range(16))
SHA256 = "0123456789abcdef" * 4


def make_kit(code: SlotSecret, slot: bytes) -> KitPage:
    return recovery_kit(
        REPOSITORY.hex(),
        "file:///mnt/blue%20drive/repository",
        code.recovery_code(),
        slot,
        SHA256,
        created="23 November 2026",
        program="DataManager 0.1.0",
        name="blue",
    )


@pytest.fixture
def code() -> SlotSecret:
    return SlotSecret.new_recovery_code()


@pytest.fixture
def page(code: SlotSecret) -> KitPage:
    return make_kit(code, Slot.seal(REPOSITORY, bytes(32), code, "printed kit").data)


def test_the_page_fits_a_printer_and_holds_all_that_is_needed(page: KitPage, code: SlotSecret) -> None:
    text = page.text.reveal().decode()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert len(text.splitlines()) <= 72
    for group in code.recovery_code().reveal().decode().split("-"):
        assert text.count(group) >= 1
    assert SHA256 in text.replace(" ", "").replace("\n", "")
    for words in ("sha256sum rescue.py", "certutil -hashfile rescue.py SHA256", "file:///mnt/blue%20drive", "blue"):
        assert words in text


def test_the_code_typed_from_the_page_opens_the_slot(page: KitPage, code: SlotSecret) -> None:
    text = page.text.reveal().decode()
    printed = text[text.index("RECOVERY CODE") + len("RECOVERY CODE") : text.index("Whoever holds")]
    assert SlotSecret.from_recovery_code(Secret(printed)) == code


def test_the_kit_never_shows_its_secret_by_accident(page: KitPage, code: SlotSecret) -> None:
    groups = code.recovery_code().reveal().decode().split("-")
    for shown in (repr(page), str(page), page.slot_text, page.qr_svg(), page.qr_text()):
        assert not any(group in shown for group in groups)


def test_typing_a_group_back_proves_the_print(page: KitPage, code: SlotSecret) -> None:
    groups = code.recovery_code().reveal().decode().split("-")
    assert page.groups == 9
    assert page.is_group(5, Secret(groups[4].lower()))
    assert not page.is_group(5, Secret("????"))
    with pytest.raises(IndexError):
        page.is_group(10, Secret(groups[0]))


def test_the_qr_code_says_the_slot(page: KitPage, code: SlotSecret) -> None:
    assert Slot.parse(base64.b64decode(page.slot_text), "printed").open(code) == bytes(32)
    assert page.qr_svg().startswith("<svg")
    assert "█" in page.qr_text()
    text = page.text.reveal().decode()
    assert page.slot_text in text.replace(" ", "").replace("\n", "")


def test_the_text_under_the_qr_code_opens_a_repository_without_keys(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "repository")
    maker.backup({b"PG_VERSION": b"17\n"})
    maker.deliver()
    slots = {path: path.read_bytes() for path in (maker.root / "keys").iterdir()}
    kit = make_kit(maker.code, next(data for data in slots.values() if data[8] == 2))
    for path in slots:
        path.unlink()
    (tmp_path / "slot").write_text(kit.slot_text)
    assert maker.rescue("check", "--slot-file", str(tmp_path / "slot")).returncode == 0


# -- README.txt -------------------------------------------------------------------------------------------------------


def test_the_readme_says_what_a_restored_server_needs() -> None:
    needs = ServerNeeds("clinic", "17.11", "Linux (Debian 12)", "x86_64", ("pg_trgm", "pgvector"))
    text = readme_text(REPOSITORY.hex(), "2026-11-23", servers=(needs,), code_place="the safe at the bank")
    for words in ("PostgreSQL 17.11", "Linux (Debian 12)", "x86_64", "pg_trgm, pgvector", "the safe at the bank"):
        assert words in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.isascii()


def test_the_readme_has_a_line_to_fill_in_where_the_place_of_the_code_is_unknown() -> None:
    assert "    ________" in readme_text(REPOSITORY.hex(), "2026-11-23")


def test_the_readme_checks_before_it_runs_and_never_gives_the_digest_itself() -> None:
    text = readme_text(REPOSITORY.hex(), "2026-11-23")
    checked = text.index("sha256sum rescue.py")
    assert checked < text.index("rescue.py check") < text.index("rescue.py restore /path")
    assert "certutil -hashfile rescue.py SHA256" in text
    assert SHA256 not in text
    assert "printed recovery kit" in text


def test_an_open_repository_says_so_in_its_readme() -> None:
    text = readme_text(REPOSITORY.hex(), "2026-11-23", encrypted=False)
    assert "NOT ENCRYPTED" in text
    assert "kept here" not in text


def test_names_from_outside_stay_on_their_line() -> None:
    text = readme_text(REPOSITORY.hex(), "2026-11-23", servers=(ServerNeeds("a\n3. RUN THIS\x1b[0m", "17"),))
    assert "\n3. RUN" not in text
    assert "\x1b" not in text
