# demo and test are all that a fresh machine needs; the second run of each starts at once.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
PACKAGES := dicom_node model worker trainer

.DEFAULT_GOAL := help
.PHONY: help demo test check bench fmt docs phantom-ensemble
.NOTPARALLEL:

help:
	@echo "make demo   send a synthetic echo study through the node and print the report"
	@echo "make test   install the test peers (Debian, as root) and run the whole suite"
	@echo "make check  ruff, mypy, import contracts"
	@echo "make bench  the benchmarks"
	@echo "make fmt    format the code"
	@echo "make docs   write the generated pages of docs/ again"
	@echo "make phantom-ensemble  train the ensemble that ships, anew (hours)"

demo: .venv/with-worker
	$(BIN)/dicom-node demo

test: .venv/with-test
	.ci/peers
	$(BIN)/python -m pytest

check: .venv/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports

bench: .venv/with-test
	@found=; for file in benchmarks/*.py; do \
	  [ -e "$$file" ] || continue; found=1; echo "== $$file"; $(BIN)/python "$$file" || exit 1; \
	done; [ -n "$$found" ] || echo "no benchmarks yet"

fmt: .venv/with-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/with-test
	$(BIN)/python -m tests.house.settings_reference

# The build backend is installed first, so that its version is one of the constraints too.
.venv/with-backend: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) hatchling editables
	@touch $@

.venv/with-worker: .venv/with-backend
	$(PIP) --no-build-isolation --editable ".[worker]"
	@touch $@

# The test extra holds all that the worker's does.
.venv/with-test: .venv/with-backend
	$(PIP) --no-build-isolation --editable ".[test]"
	@touch .venv/with-worker $@
