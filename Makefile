# Everything runs in .venv, made from the committed lock files; the first call of a target makes it, later calls start at once.
#
#   make demo      see it work: a Prefect of its own, the demo job, the report       (ARGS="--trip", ARGS="--keep")
#   make test      lint, types, import rules, all tests                              (ARGS="-k words" narrows the tests)
#   make lint      the first three of these
#   make test-slow    the tests that `make test` leaves out for their length: patterns, UI, pages, faults
#   make test-postgres  the tests of real jobs with Prefect on PostgreSQL and Redis
#   make image     the container image of flows, workers and servers
#   make containers  the tests with real containers; needs a Docker engine
#   make bench     measurements, as printed in benchmarks/README.md                  (NAME=window for one of them)
#   make chaos     faults on a real stack, with a checker             (ARGS="--seed 7")
#   make simulate  1,000 seeded jobs in virtual time, with a checker  (SEEDS=200 FIRST=5000)
#   make crash-points  a job of its own for each step at which a parent may die
#   make canary    the facts about Prefect that the code rests on, asked of the one that is installed
#   make lock      resolve the lock files anew
#   make clean     remove .venv and caches

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-postgres image containers lint bench chaos simulate crash-points canary lock clean

# The first Python that is new enough; name another with PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
ARGS ?=
# Test files that run at the same time. Most of a file's time is waiting: for servers, workers, deadlines.
WORKERS ?= 3
SEEDS ?= 1000
FIRST ?= 2000
NAME := # not from the environment

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/.run
	@$(BIN)/orchestrator demo $(ARGS)

test: lint
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=15 $(ARGS)

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test-slow: .venv/.dev
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow --durations=15 $(ARGS)

test-postgres: .venv/.dev
	@ORCHESTRATOR_TEST_DATABASE=postgres ORCHESTRATOR_REQUIRE_POSTGRES=1 ORCHESTRATOR_REQUIRE_REDIS=1 $(BIN)/python -m pytest \
		tests/integration tests/contract/test_gateway.py -n $(WORKERS) --dist loadfile -m "real and not campaign and not containers" \
		--ignore-glob='*/test_benchmarks_*' --durations=15 $(ARGS)

image:
	@docker build -f docker/Dockerfile -t prefect-batch-orchestrator:0.1.0 $(ARGS) .

containers: .venv/.dev
	@$(BIN)/python -m pytest tests/containers -m containers --durations=15 $(ARGS)

bench: .venv/.dev
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

chaos: .venv/.dev
	@$(BIN)/python -m tests.chaos $(ARGS)

crash-points: .venv/.dev
	@$(BIN)/python -m pytest tests/integration/test_crash_points.py -m campaign $(ARGS)

canary: .venv/.dev
	@$(BIN)/python -m pytest tests/canary $(ARGS)

simulate: .venv/.dev
	@$(BIN)/python -m tests.simulation --first $(FIRST) --seeds $(SEEDS) --processes $(WORKERS) $(ARGS)

# Checked only when a virtual environment has to be made.
define FIND_PYTHON
test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python ..." >&2; exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "error: $(PYTHON) is not Python 3.11 or newer; name another: make PYTHON=/path/to/python ..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
endef

.venv/bin/pip:
	@$(FIND_PYTHON)
	@echo "making .venv with $$($(PYTHON) --version)" >&2
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The development lock holds everything of the other one, at the same versions.
.venv/.run: requirements.lock pyproject.toml | .venv/bin/pip
	@echo "installing from requirements.lock (about a minute, once)" >&2
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

.venv/.dev: requirements-dev.lock pyproject.toml | .venv/bin/pip
	@echo "installing from requirements-dev.lock (one or two minutes, once)" >&2
	@$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch .venv/.run $@

# Hashes and no index lines: a lock file installs from whatever index the machine is set up with.
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links $(ARGS) pyproject.toml
# What the image (docker/Dockerfile) holds besides the library itself.
IMAGE_EXTRAS := stack s3 images records queue
lock: export UV_NO_PROGRESS=1
lock: BIN = .cache/uv/bin
lock:
	@$(FIND_PYTHON)
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .cache/uv && $(BIN)/pip install -qq --disable-pip-version-check uv; }
	@$(UV_COMPILE) --group dev --output-file requirements-dev.lock
	@$(UV_COMPILE) --group build --constraint requirements-dev.lock --output-file requirements.lock
	@$(UV_COMPILE) $(IMAGE_EXTRAS:%=--extra %) --constraint requirements-dev.lock --output-file docker/requirements.lock
	@! grep -nE '://|^-' requirements.lock requirements-dev.lock docker/requirements.lock || { echo "error: a lock file names an index" >&2; exit 1; }

clean:
	@rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
