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
	@echo "make check  ruff, mypy, import contracts, known vulnerabilities of the pinned versions"
	@echo "make bench  the benchmarks, and docs/benchmarks.md from what they print"
	@echo "make fmt    format the code"
	@echo "make docs   write the generated pages of docs/ again"
	@echo "make phantom-ensemble  train the ensemble that ships, anew (hours)"

demo: .venv/with-worker
	$(BIN)/dicom-node demo

test: .venv/with-test
	.ci/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 25

check: .venv/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/mypy tests
	$(BIN)/lint-imports
	$(BIN)/python .ci/advisories.py

bench: .venv/with-test
	.ci/peers
	$(BIN)/python benchmarks/run.py --page docs/benchmarks.md

fmt: .venv/with-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# From nothing to model/shipped by the trainer's commands alone; PHANTOM keeps what is made on the way.
PHANTOM ?= build/phantom
SHIPPED_VERSION := 0.5.0
TASKS := lvef lvedv lvesv lvef_reduced aortic_stenosis view
RECIPE := net.heads=2 net.tubelet=4 flip=false jitter.degrees=8.0 jitter.shift=0.04 jitter.gain=0.08 \
  optimiser.clip_norm=5.0 optimiser.warmup=0.05 precision=fp32 view_only_fraction=0.35
SECTOR := clip.crop=sector
DEEP := $(SECTOR) clip.depth_mm=140
SET = $(addprefix --set ,$(1))
STORE = $(BIN)/trainer prepare mimic --config small --format raw
LEARN = $(BIN)/trainer finetune $(addprefix --task ,$(TASKS)) --config small $(call SET,$(RECIPE))
FIRST = $(LEARN) $(call SET,$(SECTOR)) --data $(PHANTOM)/store
THEN = $(LEARN) $(call SET,$(DEEP)) --data $(PHANTOM)/deep-store --data $(PHANTOM)/store-140

# Each member learns in three turns, each from the encoder of the last with a learning rate as high: two at one imaging
# depth, the third at all of them. Two members begin at random, side by side; the third with the first turn of one.
phantom-ensemble: export OMP_NUM_THREADS = 1
phantom-ensemble: .venv/with-test
	$(BIN)/trainer phantom --layout mimic --cases 1000 --seed 1 --out $(PHANTOM)/data
	$(BIN)/trainer phantom --layout mimic --cases 600 --seed 2 --mixed-depths --out $(PHANTOM)/deep-data
	$(BIN)/trainer phantom --layout mimic --cases 200 --seed 20261124 --fresh --out $(PHANTOM)/fresh-data
	$(BIN)/trainer phantom --layout mimic --cases 200 --seed 20261124 --fresh --mixed-depths \
	  --out $(PHANTOM)/fresh-deep-data
	$(STORE) $(call SET,$(SECTOR)) $(PHANTOM)/data --out $(PHANTOM)/store
	$(STORE) $(call SET,$(DEEP)) $(PHANTOM)/data --out $(PHANTOM)/store-140
	$(STORE) $(call SET,$(DEEP)) $(PHANTOM)/deep-data --out $(PHANTOM)/deep-store
	$(STORE) $(call SET,$(DEEP)) $(PHANTOM)/fresh-data --all-to test --out $(PHANTOM)/fresh-140
	$(STORE) $(call SET,$(DEEP)) $(PHANTOM)/fresh-deep-data --all-to test --out $(PHANTOM)/fresh-deep
	$(FIRST) --epochs 9 --seed 0 --out $(PHANTOM)/first-0 & \
	  $(FIRST) --epochs 9 --seed 1 --out $(PHANTOM)/first-1 && wait $$!
	$(FIRST) --epochs 3 --seed 2 --encoder $(PHANTOM)/first-0 --out $(PHANTOM)/first-2
	$(FIRST) --epochs 14 --seed 0 --encoder $(PHANTOM)/first-0 --out $(PHANTOM)/member-0 & \
	  $(FIRST) --epochs 14 --seed 1 --encoder $(PHANTOM)/first-1 --out $(PHANTOM)/member-1 && wait $$!
	$(FIRST) --epochs 12 --seed 2 --encoder $(PHANTOM)/first-2 --out $(PHANTOM)/member-2
	$(THEN) --epochs 5 --seed 0 --encoder $(PHANTOM)/member-0 --out $(PHANTOM)/deep-0 & \
	  $(THEN) --epochs 5 --seed 1 --encoder $(PHANTOM)/member-1 --out $(PHANTOM)/deep-1 && wait $$!
	$(THEN) --epochs 3 --seed 2 --encoder $(PHANTOM)/member-2 --out $(PHANTOM)/deep-2
	for seed in 0 1 2; do \
	  run=$(PHANTOM)/deep-$$seed; $(BIN)/trainer evaluate $$run --data $(PHANTOM)/fresh-deep --out $$run/figures || exit 1; \
	done
	$(BIN)/trainer publish $(PHANTOM)/deep-0 $(PHANTOM)/deep-1 $(PHANTOM)/deep-2 --name phantom \
	  --version $(SHIPPED_VERSION) --ensemble $(PHANTOM)/shelf
	$(BIN)/trainer evaluate $(PHANTOM)/shelf --data $(PHANTOM)/fresh-deep --out $(PHANTOM)/figures-deep
	$(BIN)/trainer evaluate $(PHANTOM)/shelf --data $(PHANTOM)/fresh-140 --out $(PHANTOM)/figures-one-depth
	rm -rf model/shipped && cp -r $(PHANTOM)/shelf/versions/$(SHIPPED_VERSION) model/shipped

docs: .venv/with-test
	$(BIN)/python -m tests.house.settings_reference
	$(BIN)/dicom-node conformance > docs/conformance.md
	ECHO_NODE_DOCS=1 $(BIN)/python -m pytest tests/system/test_viewer.py tests/system/test_page.py

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
