# One place for every command; CI and people run the same ones.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROTOS := $(wildcard proto/baton/v1/*.proto)
CODE   := cli coordinator syncengine wire worker tests benchmarks
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Files of tests on two to four cores (tests/conftest.py says what stays together).
PARALLEL := -n auto --maxprocesses=4 --dist loadscope

.PHONY: help install demo test simulate chaos check format bench proto lock clean

help: ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: .stamp-install ## .venv with the locked dependencies and the baton command

.stamp-install: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

.stamp-dev: requirements-dev.lock .stamp-install
	$(PIP) install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

demo: .stamp-install ## real files, real processes, a real etcd, and the owner killed (DIR=/some/dir)
	@$(BIN)/python -m cli.demo $(if $(DIR),"$(DIR)")

test: .stamp-dev ## every test that this machine can run (ARGS=... goes to pytest)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered $(ARGS)

simulate: .stamp-dev ## clusters in virtual time that everything goes wrong in (SEEDS=10000, ARGS=--help)
	$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),10000) $(ARGS)

chaos: .stamp-install ## trouble at random on a cluster of its own, and a verdict (MINUTES=10, ARGS=--help)
	$(BIN)/baton chaos run --seconds $$(( 60 * $(or $(MINUTES),10) )) --at-once 3 \
	  --out $(or $(TMPDIR),/tmp)/baton-chaos-$$(date +%Y%m%d-%H%M%S) $(ARGS)

check: .stamp-dev ## format, lint, types, import contracts, generated code
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python proto/generate.py --check

format: .stamp-dev ## write the code as check wants it
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

proto: .stamp-dev ## generate the wire code from proto/baton/v1
	$(BIN)/python proto/generate.py

bench: .stamp-dev ## measure against the rivals, into docs/benchmarks.md (ARGS=--help)
	$(BIN)/python -m benchmarks $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.failover --trials 10 --output $(or $(TMPDIR),/tmp)/baton-failover.json)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.scale --output $(or $(TMPDIR),/tmp)/baton-scale.json)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.latency)
	$(if $(ARGS),,$(BIN)/python -m benchmarks.soak --minutes 30)

lock: ## resolve the dependencies anew
	uv pip compile -q --universal -p 3.11 --generate-hashes --no-header pyproject.toml -o requirements.lock
	uv pip compile -q --universal -p 3.11 --generate-hashes --no-header --group dev pyproject.toml -o requirements-dev.lock

clean: ## remove what make made
	rm -rf $(VENV) .stamp-* .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
