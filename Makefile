# `make help` lists the commands. Each sets up the environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
D := demo
# One thread a rank: two ranks share two cores, and torchrun would otherwise warn about choosing the same.
TRAIN := OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 -m hpcphotoz train --device cpu

# One worker per core, each with one thread. A worker takes a whole file, so that its fixtures are made once, and
# tests/conftest.py puts the files with the longest tests first, so that no core idles at the end.
XDIST := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(XDIST)

# $(call install,ENVIRONMENT,WHAT): pip is silent unless it fails; then its last lines give the reason.
install = $(1)/bin/python -m pip install --disable-pip-version-check --progress-bar off $(2) >$(1)/pip.log 2>&1 || \
  { tail -n 30 $(1)/pip.log >&2; echo "pip failed; all that it said is in $(1)/pip.log" >&2; exit 1; }

.DEFAULT_GOAL := test
.PHONY: help env demo docs test test-slow test-torch211 peers record bench-gpu bench-gpu-training bench-gpu-quick record-gpu format clean
.DELETE_ON_ERROR:

help:  ## list these commands
	@grep -E '^[a-z][a-z0-9-]*:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-20s %s\n", $$1, $$2}'

env: $(VENV)/.ready  ## set up .venv alone; then: source .venv/bin/activate

test: $(VENV)/.ready  ## format, lint, types and the tests that ten minutes allow
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.ready  ## the longer tests
	$(PYTEST) -m slow

# The oldest torch and triton that pyproject.toml allows, in an environment of their own: what a GPU cluster has. The
# wheels with CUDA import without a GPU, and bring the assembler that counts the registers of a kernel.
TORCH211 := .venv-torch211/bin/python
test-torch211: .venv-torch211/.ready  ## tests with the oldest torch and triton that are supported
	OMP_NUM_THREADS=1 $(TORCH211) -m pytest $(XDIST) -m "not slow" tests/kernels tests/attacks tests/compute tests/models \
	  $(wildcard tests/training/test_step*.py) tests/test_imports.py tests/benchmarks/training/test_passes.py
	OMP_NUM_THREADS=1 $(TORCH211) -m pytest --numprocesses auto --maxprocesses 8 -m slow \
	  -k "registers or test_pool_compiled or test_compiled and cnn" tests/kernels/test_compiled_kernels.py tests/models/test_compiled.py

.venv-torch211/.ready: pyproject.toml constraints.txt tests/torch211.txt
	$(PYTHON) -m venv .venv-torch211
	{ grep -v '^torch==' constraints.txt; cat tests/torch211.txt; } > .venv-torch211/constraints.txt
	$(call install,.venv-torch211,-c .venv-torch211/constraints.txt --editable '.[dev]')
	@touch $@

# Simulate labelled galaxies, train a standard and an adversarial network on two ranks, attack both, report.
demo: $(D)/.done/report  ## simulate, train a standard and an adversarial network, attack both, report: about eight minutes
	@echo "open $(D)/report.html; figures in $(D)/metrics.json"

# A dataset's manifest is written last: make's own notion of a finished target.
$(D)/data/train/manifest.json: | $(VENV)/.ready
	$(BIN)/hpcphotoz simulate $(@D) --n 8192 --seed 1

$(D)/data/test/manifest.json: | $(VENV)/.ready
	$(BIN)/hpcphotoz simulate $(@D) --n 1024 --seed 2

$(D)/.done/standard $(D)/.done/adversarial: $(D)/.done/%: $(D)/data/train/manifest.json
	$(TRAIN) $* --data $(D)/data/train --out $(D)/runs/$*
	@mkdir -p $(@D) && touch $@

$(D)/.done/report: $(D)/data/test/manifest.json $(D)/.done/standard $(D)/.done/adversarial
	$(BIN)/hpcphotoz evaluate $(D)/runs/standard $(D)/runs/adversarial --data $(D)/data/test \
	  --out $(D) --knn-train $(D)/data/train --eps 0.05 0.1 0.2
	@touch $@

# Warnings are errors, and every link inside the documentation is checked. The tutorial's notebook is executed, and
# again only when it has changed.
docs: $(VENV)/.docs  ## build the documentation: build/docs/index.html
	OMP_NUM_THREADS=2 $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky -q docs build/docs
	@echo "open build/docs/index.html"

$(VENV)/.docs: $(VENV)/.ready
	$(call install,$(VENV),-c constraints.txt --editable '.[docs]')
	@touch $@

# Packages that benchmarks measure against, in an environment of their own: never dependencies.
peers: .venv-peers/.ready  ## the environment of the packages that benchmarks compare with

.venv-peers/.ready: benchmarks/peers/requirements.txt benchmarks/peers/requirements-nodeps.txt
	$(PYTHON) -m venv .venv-peers
	$(call install,.venv-peers,-r $<)
	$(call install,.venv-peers,--no-deps -r $(word 2,$^))
	@touch $@

# Time to a robust network: trains the entry that holds the record with three seeds, and judges the networks.
record: $(VENV)/.ready  ## time to a robust network: the present record, trained and judged; nothing else may run beside it
	$(BIN)/python -m benchmarks.record

# On a machine with a GPU, with its own torch and triton: PYTHON=python3 make bench-gpu
bench-gpu:  ## on a GPU: kernels and attacks, with the torch of PYTHON; in slots of ten minutes: bench-gpu-slot-...
	$(PYTHON) -m benchmarks.bench_kernels --json benchmarks/results/kernels-gpu.json
	$(PYTHON) -m benchmarks.bench_attacks --json benchmarks/results/attacks-gpu.json

# The same for training: rates, memory, fraction of the device, streams, graphs; the peer loop.
bench-gpu-training:  ## on a GPU: training rates, memory, streams and graphs
	$(PYTHON) -m benchmarks.bench_options --json benchmarks/results/options-gpu.json
	$(PYTHON) -m benchmarks.bench_step --json benchmarks/results/step-gpu.json

# What is wanted of a GPU that is there for ten minutes at a time, in the order of its worth: make bench-gpu-slot-train.
# Figures go to RESULTS as they come, and the same command again goes on where it stopped (same commit, versions, GPU).
MINUTES ?= 7.5
RESULTS ?= benchmarks/results
SLOT_train := step --parts peer activations --networks inception
SLOT_activations := step --parts activations --networks inception cnn
SLOT_kernels := kernels
SLOT_attacks := attacks --networks inception cnn
SLOT_passes := step --parts passes --networks inception cnn
SLOT_start := step --parts start --networks inception
SLOT_streams := options --networks inception
bench-gpu-slot-%:
	$(if $(SLOT_$*),,$(error slots: train activations kernels attacks passes start streams))
	$(PYTHON) -m benchmarks.bench_$(SLOT_$*) --minutes $(MINUTES) --json $(RESULTS)/$(firstword $(SLOT_$*))-gpu.json

# The record of one GPU: the same command again goes on with the next network.
record-gpu:  ## time to a robust Inception on one GPU, with the torch of PYTHON
	$(PYTHON) -m benchmarks.record --task gpu --resume --json $(RESULTS)/record-gpu.json

# The part of each benchmark that ends within a minute: what to run first on a new machine.
QUICK := kernels attacks options step
bench-gpu-quick: $(QUICK:%=bench-gpu-quick-%)  ## on a GPU: a minute of each benchmark
bench-gpu-quick-%:
	$(PYTHON) -m benchmarks.bench_$* --quick --json benchmarks/results/$*-gpu-quick.json

format: $(VENV)/.ready  ## format the code, and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, the demo and the built documentation
	rm -rf $(D) $(VENV) build

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hpcphotoz needs Python 3.11 or later; $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),-c constraints.txt --editable '.[dev]')
	@touch $@
