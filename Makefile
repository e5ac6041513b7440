# make demo       train on Tiny Shakespeare for two minutes and read what the model writes
# make test       the everyday gate: style, types, tests
# make test-slow  what takes longer: kill loops, every corpus, the exported page in a browser
# make browser    installs Debian's Chromium, which these tests drive, where it is missing
# Each works on a fresh clone with Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-slow browser format clean

$(VENV)/run.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	$(INSTALL) '.[train,corpora]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	$(INSTALL) '.[dev]'
	@touch $(VENV)/run.stamp $@

$(VENV)/slow.stamp: $(VENV)/dev.stamp
	@echo "installing what only slow tests need ..."
	$(INSTALL) '.[dev,harness]'
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/textlstm demo

test: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: $(VENV)/slow.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow

SUDO := $(shell test "$$(id -u)" = 0 || command -v sudo)

browser:
	@if command -v chromium; then exit 0; \
	elif command -v apt-get >/dev/null; then $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y chromium; \
	else echo "install Chromium so that 'chromium' is on the PATH (the tests run that name)" >&2; exit 1; fi

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
