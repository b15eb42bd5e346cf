# make demo: the study on the embedded model. make test: lint, types and the tests. make docs: the site, its notebooks run.
# Each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types tests docs

demo: $(VENV)/demo
	$(BIN)/dialdown fetch
	$(BIN)/dialdown run

test: lint types tests

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

# One thread for the processes that tests start, too: two tests at once are as much as two cores do.
tests: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/dev
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# The constraint keeps pip on one torch; see docs/index.md for an install with the torch of your choice.
$(VENV)/demo: EXTRAS := train,app
$(VENV)/dev: EXTRAS := dev
$(VENV)/demo $(VENV)/dev: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@
