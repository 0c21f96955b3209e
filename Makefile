# One command for each thing that a reader, a user or a reviewer would ask for; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 300
FUZZ_INPUTS ?= 1000000
MINUTES ?= 20
SOAK_ARGS ?=
POWER_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup system peers demo test check check-format check-lint check-types check-imports check-protos \
	test-trixie interop-trixie bench bench-scale crash fuzz soak power protos lock format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: system $(VENV)/.stamp peers ## prepare everything: system packages, .venv, peers; quick when nothing changed

system:
	@tools/system-packages.sh

$(VENV)/.stamp: requirements.lock pyproject.toml src/orlop/version.py | system
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

peers: | system
	@$(PYTHON) tools/peers.py

demo: setup ## two images, a registry, a fresh orlopd, and the whole life of a container
	@$(BIN)/python -m tools.demo

test: setup check ## check, then every test that this host allows; the rest is skipped and says why
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-trixie: ## our tests on Python 3.13 and beside containerd 1.7, in a root that debootstrap makes (once)
	@$(PYTHON) tools/trixie.py make --no-print-directory setup
	@$(PYTHON) tools/trixie.py .venv/bin/python -m pytest $(PYTEST_ARGS)

interop-trixie: ## the same, but only what compares us with containerd
	@$(MAKE) --no-print-directory test-trixie PYTEST_ARGS="tests/interop $(PYTEST_ARGS)"

check: setup ## format, lint, types, import contracts, generated code: all quick
	@$(MAKE) --no-print-directory --keep-going -j 2 --output-sync=target \
		check-types check-format check-lint check-imports check-protos

check-format:
	@$(BIN)/ruff format --check --quiet . || { echo "check: run 'make format'"; exit 1; }

check-lint:
	@$(BIN)/ruff check --quiet .

check-types:
	@$(BIN)/mypy --no-error-summary

check-imports:
	@$(BIN)/lint-imports --no-logo > .import_linter_report 2>&1 || { cat .import_linter_report; exit 1; }

check-protos:
	@$(BIN)/python tools/protos.py --check

fuzz: setup ## bad input for FUZZ_SECONDS (300), then until FUZZ_INPUTS (a million): parsers, a daemon; atheris if it is there
	@$(BIN)/python -m tools.fuzz --seconds $(FUZZ_SECONDS) --inputs $(FUZZ_INPUTS)

soak: setup ## load a daemon for MINUTES (20) and look for what leaks; latencies are printed
	@$(BIN)/python -m tools.soak --minutes $(MINUTES) $(SOAK_ARGS)

crash: setup $(if $(ONLY)$(POINTS)$(ACTIONS),,power) ## kill a daemon at each fail point of each operation, and have each fail, and look (ONLY=…, POINTS=… pick by pattern, ACTIONS=kill or error); without them also power
	@$(BIN)/python -m tools.crash $(if $(ONLY),--only "$(ONLY)") $(if $(POINTS),--points "$(POINTS)") $(if $(ACTIONS),--actions "$(ACTIONS)")

power: setup ## let the power go at each write and flush of a daemon's life, and look at what is left; places x outcomes
	@$(BIN)/python -m tools.power $(POWER_ARGS)

bench: setup ## orlopd beside containerd on this machine, alternating; medians and ratios (ONLY=start,memory picks)
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(BENCH_ARGS)

bench-scale: setup ## orlopd alone, with ten to ten thousand objects: latency, lists, collection, memory, start
	@$(BIN)/python -m bench.scale $(BENCH_ARGS)

protos: setup ## generate src/orlop/api from proto/
	@$(BIN)/python tools/protos.py

format: setup ## format the code and sort imports
	@$(BIN)/ruff check --quiet --fix --select I .
	@$(BIN)/ruff format --quiet .

lock: setup ## resolve the dependencies anew into requirements.lock
	@$(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet --disable-pip-version-check uv
	@.cache/uv/bin/uv pip compile --quiet --upgrade pyproject.toml --group dev --universal --python-version 3.11 \
		--generate-hashes --no-header --output-file requirements.lock
