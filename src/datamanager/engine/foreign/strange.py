"""What a file looks like that no backup of PostgreSQL looks like, in words that help whoever chose it."""

from __future__ import annotations

import re

# First bytes, what they are, and what to do instead.
_BINARY = (
    (b"TAPE", "a backup of Microsoft SQL Server (.bak)", "Only SQL Server reads it."),
    (b"SQLite format 3\0", "an SQLite database", "Load it with pgloader."),
    (b"\0\x01\0\0Standard", "a Microsoft Access database", "Export its tables as CSV, and load those with \\copy."),
    (b"%PDF", "a PDF document", ""),
    (b"\x7fELF", "a program", ""),
    (b"MZ", "a Windows program", ""),
    (b"PK\x03\x04", "a zip archive within another archive", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"PGCOPY\n\xff", "the rows of one table (COPY in binary format)", "Load it with \\copy ... WITH (FORMAT binary)."),
    (b"DMPG0001", "an object of a DataManager repository", "Give the repository's folder with --repo."),
)
_TEXT = (
    (r"<(!doctype\s+)?html|<\?xml", "a web page or XML, perhaps the error page of a download",
     "Download the file again, and look at it first."),
    (r"(-- (MySQL|MariaDB) dump|/\*M?!\d+)", "a dump of MySQL or MariaDB",
     "Only MySQL reads it; pgloader moves a running MySQL to PostgreSQL."),
    (r"(USE \[|SET ANSI_NULLS|/\*+ Object:)", "a script of Microsoft SQL Server", "Only SQL Server reads it."),
    (r"(--|/\*|\s|SET |CREATE |INSERT |BEGIN|ALTER |DROP |SELECT |COPY |\\)",
     "an SQL script that pg_dump did not write, so nothing tells whether it is whole",
     "Look at it, and run it yourself: psql -X --set ON_ERROR_STOP=1 --single-transaction -f FILE DATABASE."),
)  # fmt: skip
_ASK = "Give a file of pg_dump or pg_dumpall, a pg_basebackup directory or tar, or an export of this program."


def describe_strange(head: bytes) -> tuple[str, str]:
    """What a file with these first bytes looks like, and a hint.

    Args: head - the first kilobytes, decompressed.
    """
    if not head:
        return "an empty file", "The dump was never written; look at how it was made."
    if not head.strip(b"\0"):
        return "a file of zeros: its content was lost, often by a disk that was full or a machine that lost power", _ASK
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        if head[2:60].replace(b"\0", b"").startswith(b"--"):
            hint = "PowerShell's > writes so and spoils names and texts; make the dump again with pg_dump --file=FILE."
            return "an SQL script in UTF-16", hint
        return "a text in UTF-16", _ASK
    for magic, what, hint in _BINARY:
        if head.startswith(magic):
            return what, hint or _ASK
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").decode("latin-1")
    for pattern, what, hint in _TEXT:
        if re.match(pattern, text, re.IGNORECASE):
            return what, hint
    printable = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in head) > 0.95 * len(head)
    return ("a text, but no SQL" if printable else "nothing known"), _ASK
