# What a newcomer needs: `make demo` (the main job on this machine) and `make test`. The rest serves developers.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CAPTURE := src/failback/mobility/capture/capture.bpf.o
NATIVE := src/failback/runtime/_native.so

.PHONY: soak demo test check format lint types unit bench fuzz docs readiness-page states-page build clean system-packages

demo: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/failback lab demo

# What fails gets a second try, loudly (real processes, kernels and emulated machines on a machine that may be busy): the first
# failure stays in the output, logs of the guests' stories in e2e-logs/. Worlds from seeds fail twice if they fail once.
test: check
	$(BIN)/pytest --ignore=tests/e2e || { echo "Some tests failed: those once more."; \
		$(BIN)/pytest --ignore=tests/e2e --last-failed --last-failed-no-failures none; }
	$(BIN)/pytest tests/e2e || { echo "A story of tests/e2e failed: once more."; $(BIN)/pytest tests/e2e; }

# Simulated worlds and real processes broken on purpose, for a while: prints a report, fails when anything was lost.
SOAK_MINUTES ?= 20
soak: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python tests/soak/run.py

check: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

lint types: check

unit: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/pytest tests/unit

# The table of bench/README.md; BENCH=name for one, SCALE=small PAIRS=1 for a quick try.
bench: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/python bench/run.py

# Every parser under coverage-guided fuzzing (fuzz/README.md); findings go to fuzz/findings/.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/python fuzz/run.py all $(FUZZ_SECONDS)

# The page of all preconditions, made from the registry.
readiness-page: $(VENV)/.ready
	$(BIN)/python -m failback.protection.readiness.document > docs/readiness.md

# The page of an item's states, made from the table.
states-page: $(VENV)/.ready
	$(BIN)/python -m failback.protection.states_page > docs/reference/states.md

build: $(VENV)/.ready $(CAPTURE) $(NATIVE)
	$(BIN)/python -m build

# apt packages: see deploy/system-packages.sh, which says which and why, and refuses with a reason where it cannot work.
system-packages .system-packages:
	deploy/system-packages.sh
	@touch .system-packages

$(VENV)/.ready: pyproject.toml constraints.txt | .system-packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,kvm,dev]'
	@touch $@

$(CAPTURE): $(wildcard bpf/*) build_capture.py | .system-packages
	$(PYTHON) build_capture.py

$(NATIVE): native/native.c build_capture.py | .system-packages
	$(PYTHON) build_capture.py
	@touch $@

clean:
	rm -rf $(VENV) .system-packages build dist $(CAPTURE) $(NATIVE) .mypy_cache .ruff_cache .pytest_cache
