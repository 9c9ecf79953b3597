# `make setup` makes .venv; the other targets call it. PYTHON=python3.12 picks another interpreter.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
DEMO   := demo
# The C++ runner of examples/deploy is built against this wheel's headers and libraries.
OPENVINO := build/openvino
OPENVINO_VERSION := 2026.4.1
# Few models, for Warp compiles kernels for each.
QUICK_CUDA_TESTS := tests/models/test_fused_norm_swish.py tests/envs/simulators/test_warp_simulator.py \
  tests/stages/train_teacher/test_cuda_graphs.py

.DEFAULT_GOAL := help
.PHONY: help setup benchmark-setup docs-setup docs demo test test-all test-cuda test-cuda-quick check format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

setup: $(STAMP)  ## Make .venv with everything installed, in the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Thousandfold needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setup: installing into $(VENV) (torch and its libraries are large: minutes on a slow line)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e ".[train,dev]"
	@touch $@
	@echo "setup: done; the command line is $(BIN)/pipeline"

benchmark-setup: setup  ## Install what the baselines need on top (JAX, EnvPool)
	@echo "benchmark-setup: installing JAX, flax, optax and EnvPool (0.7 GB with its assets) into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e ".[train,dev,benchmark]"

docs-setup: $(DOCS_STAMP)  ## Install what documentation and notebooks need on top (MkDocs, a Jupyter kernel)

$(DOCS_STAMP): $(STAMP)
	@echo "docs-setup: installing MkDocs and a Jupyter kernel into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints.txt -e ".[train,dev,docs,notebooks]"
	@touch $@

# The variable silences the theme's notice about MkDocs 2; pyproject.toml stays below it.
docs: docs-setup  ## Build the documentation, strictly, into build/site; it opens without a server
	@echo "docs: build/site/index.html"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: setup  ## Teacher to ONNX policy on the point maze, a few minutes on a CPU; results in demo/
	@echo "demo: the quickstart preset, every stage; results in $(DEMO)/runs"
	@$(BIN)/pipeline --workspace $(DEMO) run --preset quickstart
	@echo "demo: artifacts lie in $(DEMO)/runs; $(BIN)/pipeline --workspace $(DEMO) ui shows the runs"

test: setup  ## Run the fast tests, on two processes
	@echo "test: the fast tests"
	@$(BIN)/python -m pytest -q -m "not slow and not cuda" -n 2 --dist loadfile

$(OPENVINO)/.$(OPENVINO_VERSION):
	@echo "test-all: fetching OpenVINO $(OPENVINO_VERSION) for the C++ runner (60 MB) into $(OPENVINO)"
	@rm -rf $(OPENVINO)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OPENVINO) \
	  openvino==$(OPENVINO_VERSION) && touch $@ || \
	  echo "test-all: there is no such wheel here; the test of the C++ runner is skipped"

test-all: docs-setup $(OPENVINO)/.$(OPENVINO_VERSION)  ## Run every test that needs no GPU, the slow ones too
	@echo "test-all: every test but those that need CUDA"
	@$(BIN)/python -m pytest -q -m "not cuda" -rs -n 2 --dist loadfile

test-cuda: setup  ## Run the tests that need a CUDA device; fails where driver, torch or Warp sees none
	@echo "test-cuda: the tests that need a CUDA device"
	@$(BIN)/python -m thousandfold.pipeline.cuda
	@$(BIN)/python -m pytest -q -m cuda -rs

test-cuda-quick: setup  ## Of these the telling ones: the simulator, the captured learner, one training
	@echo "test-cuda-quick: the simulator and the captured learner; the first time Warp compiles for minutes"
	@$(BIN)/python -m thousandfold.pipeline.cuda
	@$(BIN)/python -m pytest -q -m cuda -rs $(QUICK_CUDA_TESTS)

check: setup  ## Check style, formatting, types and who imports whom
	@echo "check: ruff, pyright, import directions"
	@$(BIN)/ruff check .
	@$(BIN)/ruff check --preview --select PLW1514 --exclude tests .  # text is UTF-8, whatever the locale says
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/python -m pytest -q tests/test_import_direction.py

format: setup  ## Put the code in order with ruff
	@echo "format: ruff"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## Remove caches and build outputs (not .venv, not results)
	@echo "clean: caches and build outputs"
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
