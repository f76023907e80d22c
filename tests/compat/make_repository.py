"""Make the stored repository of a release, once: ``python -m tests.compat.make_repository 0.1.0``.

Never run again for a release that has one: the point is that its bytes were written then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

from tests.rescue.build import PAGE, PASSPHRASE, Change, Maker, Tree

HERE = Path(__file__).resolve().parent


def tree() -> Tree:
    """Two chunks of pages, zeros inside, a short file, an empty one, odd names: small, and every rule is touched."""
    pages = b"".join(f"page {number} ".encode() * 2000 for number in range(40))
    return {
        b"PG_VERSION": b"17\n",
        b"base": None,
        b"base/5": None,
        b"base/5/16384": pages[: 40 * PAGE],
        b"base/5/16385": pages[:PAGE] + bytes(70 * PAGE) + pages[PAGE : 2 * PAGE],
        b"base/5/16386": b"",
        b"base/5/dropped later": b"gone",
        "base/Grüße.txt".encode(): b"umlauts\n",
        b"base/with:colon and\\backslash \xff": b"a stray file\n",
        b"global": None,
        b"global/pg_control": pages[:8192],
        b"postgresql.conf": b"# 41 bytes, no page: the last one is short\n",
    }


def main() -> None:
    """Make the folder of a release."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release")
    folder = HERE / f"release-{parser.parse_args().release}"
    folder.mkdir()
    maker = Maker(folder / "repository")
    first = maker.backup(tree())
    changed = bytes([7]) * PAGE
    maker.increment(
        first,
        {
            b"base/5/16384": Change(size=36 * PAGE, kept=20, pages={0: changed, 19: changed, 35: changed}),
            b"base/5/dropped later": None,
            b"base/5/new": b"a new file\n",
        },
    )
    deleted = maker.backup({b"PG_VERSION": b"17\n"})
    maker.repository.put_mark(deleted.backup, "deleted")
    (data,) = (pack for pack, _ in maker.repository.layer(deleted.layers[0]).packs)
    (meta, _, _) = deleted.layers[0].spans[0]
    maker.root.joinpath("packs", data.hex()[:2], data.hex()).unlink()
    maker.root.joinpath("meta", meta[:2], meta).unlink()
    shutil.rmtree(maker.root / "meta-b")
    for path in sorted(maker.root.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    expected = {
        backup: {
            path.decode("utf-8", "surrogateescape"): None if content is None else hashlib.sha256(content).hexdigest()
            for path, content in files.items()
        }
        for backup, files in maker.expected.items()
        if backup != deleted.backup
    }
    secrets = {
        "passphrase": PASSPHRASE.reveal().decode(),
        "recovery_code": maker.code_text(),
        "key_file": maker.key.key_file().decode(),
    }
    for name, value in (("expected.json", expected), ("secrets.json", secrets)):
        text = json.dumps(value, indent=1, sort_keys=True) + "\n"
        folder.joinpath(name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
