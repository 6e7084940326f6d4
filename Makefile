# Everything there is to type. Needs Python 3.11 or newer and nothing else: each verb first sets up what it uses.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed
UV := UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links $(ARGS)

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test bench soak up lint format install lock clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Live a billing year in a minute, with real processes and over HTTP
	@$(BIN)/python -m workers demo $(ARGS)

test: $(STAMP) ## Run all tests; ARGS="-k renewal" picks some
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup $(ARGS)

bench: $(STAMP) ## Measure spending and renewals against limit and habit; takes an hour, ARGS="--save" keeps it
	@$(BIN)/python -m bench spending $(ARGS)
	@$(BIN)/python -m bench renewals --accounts 10000 --accounts 100000 --accounts 1000000 $(ARGS)

soak: $(STAMP) ## Let faults strike for three minutes after accepting and executing were measured; ARGS="--minutes 30"
	@$(BIN)/python -m bench soak $(ARGS)

up: $(STAMP) ## Start everything and leave it running until Ctrl-C
	@$(BIN)/python -m workers up $(ARGS)

lint: $(STAMP) ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Rewrite what the style checks can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP) ## Install what requirements/dev.txt pins into .venv
	@echo "Ready: .venv holds what requirements/dev.txt pins."

lock: $(STAMP) ## Compile requirements/ from pyproject.toml; ARGS=--upgrade takes the newest versions
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	$(UV) --output-file requirements/prod.txt pyproject.toml
	$(UV) --output-file requirements/dev.txt --constraints requirements/prod.txt --group dev pyproject.toml
	$(UV) --output-file requirements/lock.txt --group lock

clean: ## Remove .venv, caches and the embedded servers' data
	@for file in .data/postgres/data/postmaster.pid .data/valkey/valkey.pid; do \
		pid=$$(head -n 1 $$file 2>/dev/null) && kill -0 "$$pid" 2>/dev/null || continue; \
		echo "A server still runs on .data, as process $$pid. End \`make up\`, or the process, first." >&2; exit 1; \
	done
	@rm -rf .venv .data .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew whenever a pinned version changes, so that it never holds anything else.
$(STAMP): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: name one, as in \`make PYTHON=python3.12\`." >&2; \
		exit 1; }
	@total=$$(grep -c '==' $<); echo "Installing $$total packages into .venv, once; this takes about a minute."; \
	set -o pipefail; $(PYTHON) -m venv --clear .venv && \
	PYTHONUNBUFFERED=1 $(BIN)/pip install --disable-pip-version-check --no-input --progress-bar off \
		--require-hashes -r $< | \
	awk -v total=$$total '/^Collecting / && ++n % 20 == 0 { print "  " n " of " total " collected"; fflush() } \
		/^Installing collected/ { print "  unpacking"; fflush() }'
	@touch $@
