# Every target makes the environment it needs; python3 (3.11 or newer) and make are enough.
# Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
RUN := .venv/bin/python -m
# Files of tests that run side by side. Most tests wait for something, so more than there are processors.
JOBS ?= 3
# Where the machine has no libgomp, the set-up puts a copy here; tests that load the embedded engine need it.
OPENMP := LD_LIBRARY_PATH="$(CURDIR)/.venv/lib/llamaman-openmp$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}"

.DEFAULT_GOAL := help
.PHONY: help venv demo-venv demo test lint format docs bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## make .venv with everything installed editable, tests and lint included
	@$(PYTHON) scripts/bootstrap_venv.py --profile dev

demo-venv:
	@$(PYTHON) scripts/bootstrap_venv.py --profile demo

demo: demo-venv ## start LlamaMan with a small model and ask it something (DEMO_EXIT=1: then stop)
	@exec .venv/bin/llamaman demo

test: venv ## run all tests (choose with ARGS="tests/core -k ports"; one after the other with JOBS=0)
	@$(OPENMP) $(RUN) pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: venv ## formatting, lint and types; changes nothing
	@status=0; for tool in "ruff format --check ." "ruff check ." mypy; do \
		echo "--- $$tool"; $(RUN) $$tool || status=1; \
	done; exit $$status

format: venv ## let ruff rewrite what it can
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

docs: venv ## write docs/reference and the examples in docs/plugins.md anew from the code
	@.venv/bin/python scripts/make_docs.py

bench: venv ## measure the front door against a direct connection and nginx
	@$(RUN) benchmarks $(ARGS)

clean: ## remove .venv, the demo's files and every cache
	rm -rf .venv .venv-clients .venv-clients.lock .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
