# What a developer and CI run. `make demo` and `make test` work in a fresh clone: they make .venv by themselves.

PYTHON ?= python3
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
WORKERS ?= 2

# Windows puts a virtual environment's programs elsewhere.
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

READY := .venv/.ready
FETCHED := .cache/postgresql/.ready
WHEELS := src/datamanager/rescue/wheels/.ready

.PHONY: setup demo test test-slow check requirements bench clean

setup: $(READY) $(WHEELS)

# A venv whose Python is gone, or that has no pip, is made anew; one that works is only completed.
$(READY): pyproject.toml
	rm -f $(READY)
	$(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

$(WHEELS): tools/fetch_rescue_wheels.py $(READY)
	$(BIN)/python tools/fetch_rescue_wheels.py
	touch $(WHEELS)

$(FETCHED): tools/fetch_postgresql.py $(READY)
	$(BIN)/python tools/fetch_postgresql.py
	touch $(FETCHED)

demo: setup
	$(BIN)/datamanager demo $(DEMO_ARGS)

test: setup $(FETCHED)
	$(BIN)/python -m pytest -n $(WORKERS) $(TEST_ARGS)

test-slow: setup $(FETCHED)
	$(BIN)/python -m pytest -n $(WORKERS) --slow $(TEST_ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/requirements_page.py --check
	$(BIN)/python tools/cli_reference.py --check

requirements: setup
	$(BIN)/python tools/requirements_page.py

bench: setup
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf src/datamanager/rescue/wheels src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
