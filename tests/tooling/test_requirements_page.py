"""The generated page tells which test shows which requirement, and by which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.requirements_page import CHECKOUT, main, make_page, read_requirements

SENTENCES = """
[[requirement]]
number = "R1"
area = "A. First"
title = "One"
shown = "It is one."

[[requirement]]
number = "R2"
area = "A. First"
title = "Two"
shown = "It is two."
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """An empty checkout with two requirements."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests" / "below").mkdir(parents=True)
    (tmp_path / "docs" / "requirements.toml").write_text(SENTENCES)
    return tmp_path


def write_test(checkout: Path, body: str, mark: str = '"R1"') -> None:
    """Write a test file with one test that carries ``mark``."""
    text = f"import pytest\n\n@pytest.mark.requirement({mark})\ndef test_one() -> None:\n{body}"
    (checkout / "tests" / "below" / "test_a.py").write_text(text)


def test_a_requirement_without_a_test_is_not_yet_shown(checkout: Path) -> None:
    assert make_page(checkout).count("- **not yet**") == 2


def test_the_last_assert_of_the_test_stands_beside_its_name_on_one_line(checkout: Path) -> None:
    write_test(checkout, "    assert 1\n    assert (\n        2 ==\n        two\n    )\n")
    assert "- `tests/below/test_a.py::test_one`: `assert ( 2 == two )`" in make_page(checkout)


def test_a_comment_chooses_the_asserting_line(checkout: Path) -> None:
    write_test(checkout, "    compare(a, b)  # requirement R1\n    assert 2\n")
    assert "test_one`: `compare(a, b)`" in make_page(checkout)


def test_a_raises_counts_as_asserting(checkout: Path) -> None:
    write_test(checkout, '    with pytest.raises(ValueError, match="no"):\n        act()\n')
    assert 'test_one`: `with pytest.raises(ValueError, match="no"):`' in make_page(checkout)


def test_a_part_says_what_is_missing_until_another_test_shows_the_whole(checkout: Path) -> None:
    write_test(checkout, "    assert 1\n", mark='"R1", missing="the rest"')
    assert "- **partly: missing the rest**" in make_page(checkout)
    whole = "import pytest\n\n@pytest.mark.requirement('R1')\ndef test_two() -> None:\n    assert 2\n"
    (checkout / "tests" / "test_b.py").write_text(whole)
    page = make_page(checkout)
    assert "- **shown**" in page
    assert "Of 2: 1 shown, 0 partly, 1 not yet." in page


@pytest.mark.parametrize(
    ("mark", "body", "complaint"),
    [
        ('"R3"', "    assert 1\n", "there is no requirement R3"),
        ('"R1"', "    pass\n", "no assert"),
        ("NUMBER", "    assert 1\n", "plain strings"),
    ],
)
def test_a_mark_that_shows_nothing_is_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str], mark: str, body: str, complaint: str
) -> None:
    write_test(checkout, body, mark=mark)
    assert main(["--checkout", str(checkout)]) == 1
    assert complaint in capsys.readouterr().err


def test_a_page_that_is_out_of_date_fails_the_check(checkout: Path) -> None:
    assert main(["--checkout", str(checkout), "--check"]) == 1
    assert main(["--checkout", str(checkout)]) == 0
    assert main(["--checkout", str(checkout), "--check"]) == 0
    write_test(checkout, "    assert 1\n")
    assert main(["--checkout", str(checkout), "--check"]) == 1


def test_the_data_hold_every_requirement_once() -> None:
    numbers = [requirement.number for requirement in read_requirements(CHECKOUT / "docs" / "requirements.toml")]
    assert numbers == [f"R{n}" for n in range(1, 102)] + [f"N{n}" for n in range(1, 16)]
