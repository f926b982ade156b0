# One command each, the same here and in continuous integration. Every target works on
# a fresh clone by itself: it makes .venv if there is none and re-uses it afterwards.

VENV ?= .venv
PYTHON ?=# the interpreter to make .venv with; by default the first one that will do
WORKERS ?= 2# processes that the tests are spread over
EXTRAS ?= dev# of `make install`, e.g. EXTRAS=dev,peers
TIER ?= quick# of `make bench`: quick, full or accel
BASE ?=# of `make bench-compare`: a file of benchmarks/baselines

BIN := $(VENV)/bin
MADE := $(VENV)/.made
CORE := $(VENV)/.core
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test check lint fix slow claims bench bench-compare docs smoke clean distclean

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

install: $(MADE) ## the package, editable, with what developing it needs (EXTRAS=dev,peers)
	@$(BIN)/python .ci/install.py $(EXTRAS)
	@touch $(CORE) $(DEV)

demo: $(CORE) ## train policies inside world models, five seeds at once, and report
	@out=runs/demo; n=2; while [ -e $$out/report.html ]; do out=runs/demo-$$n; n=$$((n + 1)); done; \
	echo "Training five policies at once inside world models, into $$out."; \
	$(BIN)/jaxwm train polygrad --env pendulum --seeds 5 --preset fast --out $$out

test: $(DEV) ## the tests that take seconds each
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: lint ## format, lint, types, layers
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_layers.py tests/test_house.py

lint: $(DEV) ## format and lint alone
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

fix: $(DEV) ## mend format and lint
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

slow: $(DEV) ## the tests that take minutes
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m slow

claims: $(DEV) ## every system's experiment against its claim
	@$(BIN)/python -m pytest -m claims

bench: $(DEV) ## throughput beside the peers that are installed (TIER=quick|full|accel)
	@$(BIN)/python -m benchmarks.runner --tier $(TIER)

bench-compare: $(DEV) ## the same, and fail where slower than BASE=benchmarks/baselines/...
	@test -n "$(BASE)" || { echo "say which: make bench-compare BASE=benchmarks/baselines/NAME.jsonl"; exit 2; }
	@$(BIN)/python -m benchmarks.runner --tier $(TIER) --base $(BASE)

docs: $(DEV) ## build the pages into site/ and run their code
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "Built site/index.html."
	@$(BIN)/python -m pytest -q tests/test_docs.py

smoke: $(DEV) ## every example and benchmark at tiny size
	@set -e; for script in examples/*.py; do \
	echo "$$script"; $(BIN)/python $$script --smoke --out build/smoke/$$(basename $$script .py); done
	@$(BIN)/python -m benchmarks.runner --smoke

clean: ## remove what the targets made, but for .venv and runs/
	rm -rf build dist site benchmarks/results .cache .pytest_cache .ruff_cache .hypothesis
	find jaxwm tests benchmarks examples docs .ci -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf $(VENV) *.egg-info

$(MADE):
	@.ci/venv $(VENV) $(PYTHON)
	@touch $@

$(CORE): pyproject.toml constraints.txt | $(MADE)
	@$(BIN)/python .ci/install.py
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(MADE)
	@$(BIN)/python .ci/install.py dev
	@touch $(CORE) $@
