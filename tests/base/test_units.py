"""Log sequence numbers, sizes, durations and secrets, as people read and write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.base.units import GIB, KIB, MIB, Lsn, Secret, format_duration, format_size, parse_size


@given(st.integers(0, 2**64 - 1))
def test_a_log_position_reads_back(value: int) -> None:
    assert Lsn.parse(str(Lsn(value))) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0/0", 0), ("16/B374D848", 0x16B374D848), ("ffffffff/FFFFFFFF", 2**64 - 1)]
)
def test_a_log_position_is_read_as_postgresql_writes_it(text: str, value: int) -> None:
    assert Lsn.parse(text) == value
    assert str(Lsn(value)) == text.upper()


@pytest.mark.parametrize(
    "text", ["", "/", "0", "0/", "/0", "0/0/0", "G/0", "123456789/0", "0/123456789", " 0/0", "-1/0"]
)
def test_what_is_no_log_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a log sequence number"):
        Lsn.parse(text)


def test_log_positions_are_numbers() -> None:
    assert Lsn.parse("0/2000028") < Lsn.parse("1/0")
    assert Lsn.parse("1/0") - Lsn.parse("0/FFFFFFFF") == 1
    assert repr(Lsn(255)) == "Lsn('0/FF')"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("300MB", 300 * MIB),
        ("300 mib", 300 * MIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("2k", 2 * KIB),
        ("1T", 1024 * GIB),
        ("7B", 7),
        ("  10 KB  ", 10 * KIB),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-1", "1 PB", "1,5 GB", "1..5G", "ten", "1 G B", "0x10", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (150 * KIB, "150 KiB"),
        (MIB, "1.0 MiB"),
        (5.25 * GIB, "5.2 GiB"),
        (2048 * GIB, "2.0 TiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_sizes_are_written_with_few_digits(value: float, text: str) -> None:
    assert format_size(value) == text


@given(st.integers(0, 2**50))
def test_a_size_that_was_written_reads_back_within_its_digits(value: int) -> None:
    assert abs(parse_size(format_size(value)) - value) <= max(0.06 * value, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (75, "1 min 15 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_are_written_in_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_secret_never_prints() -> None:
    secret = Secret("open sesame")
    for shown in (str(secret), repr(secret), f"{secret}", f"{[secret]}"):
        assert "sesame" not in shown
    assert secret.reveal() == b"open sesame"
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_by_their_bytes() -> None:
    assert Secret("a") == Secret(b"a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != b"a"
    assert len({Secret("a"), Secret(b"a")}) == 1
