# One-word commands, the same on a laptop and in CI. PIP_ARGS goes to pip, ARGS to the command.
# `make bench COMPARE=HEAD ARGS=ingest` compares with a result in git; a file or a directory will do, too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
ARGS ?=
# Where no Apache Kafka is named, a launcher beside this repository is taken; without one its tests are skipped.
HEADWATER_TEST_KAFKA ?= $(if $(shell command -v java),$(realpath ../shared/kafka/run))
KILLS ?= 100
FAULTS ?= 200
# Tests wait for processes more than they compute. A file's tests stay together, and so do its brokers.
WORKERS ?= 2

.PHONY: install demo test coverage crash check bench docs dist clean

# The stamp makes set-up happen once, and again only when what it depends on changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/headwater demo $(ARGS)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# The tests once more with branch coverage, of the processes that they fork too; fails below `fail_under`.
coverage: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term $(ARGS)

crash: install
	HEADWATER_TEST_KAFKA=$(HEADWATER_TEST_KAFKA) $(BIN)/python -m pytest tests/crash --kills $(KILLS) --faults $(FAULTS) $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(MAKE) --no-print-directory docs

bench: install
	$(BIN)/python -m benchmarks $(if $(COMPARE),--compare $(COMPARE)) $(ARGS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore::DeprecationWarning -m mkdocs build --strict --quiet

dist: install
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	@ls -l dist

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
