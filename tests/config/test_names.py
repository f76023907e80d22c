"""Names: safe on every system, and a refused one comes with one that would do."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.errors import UsageError
from datamanager.config.names import (
    MAX_BACKUP_NAME_BYTES,
    check_backup_name,
    check_name,
    suggest_backup_name,
)

WINDOWS_REFUSES = set('<>:"/\\|?*') | {chr(code) for code in range(32)}
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@pytest.mark.parametrize("name", ["office", "Office-2", "a", "0", "a_b", "x" * 63])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name("cluster", name) == name


@pytest.mark.parametrize(
    "name", ["", "-x", "_x", "a b", "a/b", "a.b", "ä", "nul", "COM1", "latest", "all", "x" * 64, "a\n"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        check_name("cluster", name)


@given(st.text(max_size=80))
def test_the_name_suggested_for_a_refused_one_is_taken(name: str) -> None:
    try:
        check_name("cluster", name)
    except UsageError as error:
        suggested = error.hint.rpartition("for example ")[2].removesuffix(".")
        assert check_name("cluster", suggested) == suggested


@pytest.mark.parametrize(
    "name", ["nightly", "Nächtliche Sicherung", "夜のバックアップ", "before update (2)", "O'Brien & Co"]
)
def test_backup_names_of_any_language_are_taken(name: str) -> None:
    assert check_backup_name(name) == name


def test_composed_and_decomposed_letters_are_one_name() -> None:
    assert check_backup_name(unicodedata.normalize("NFD", "Müller")) == "Müller"


@given(st.text(max_size=200))
def test_a_backup_name_that_is_taken_is_a_file_name_everywhere(name: str) -> None:
    try:
        taken = check_backup_name(name)
    except UsageError:
        return
    assert not WINDOWS_REFUSES & set(taken)
    assert not DEVICES.fullmatch(taken)
    assert taken == taken.strip(" .")
    assert taken not in ("", ".", "..")
    assert len(taken.encode()) <= MAX_BACKUP_NAME_BYTES


@given(st.text(max_size=200))
def test_the_backup_name_suggested_for_any_text_is_taken(name: str) -> None:
    suggested = suggest_backup_name(name)
    assert check_backup_name(suggested) == suggested
