"""``python -m datamanager`` is the command line."""

from __future__ import annotations

from datamanager.cli.main import main

if __name__ == "__main__":
    main()
