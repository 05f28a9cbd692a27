# `make demo` and `make test` are all a new checkout needs.
PYTHON ?= python3
VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo chain test attack sanitize lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## make .venv and install all that is needed (once, about half an hour)
	@$(PYTHON) tools/setup_env.py

demo: setup  ## train a Sparse Wide RetinaNet and its dense baseline, compare
	@$(VENV) -m demo.demo

chain: setup  ## pretrain, transfer masks, detect and segment, in small
	@$(VENV) -m demo.chain $(ARGS)

test: setup  ## run the tests; ARGS='-k rigl' picks some
	@$(VENV) -m pytest $(ARGS)

attack: export SIFT_MM_CASES ?= 100000
attack: export SIFT_MM_KILLS ?= 100
attack: setup  ## 100,000 random cases of mask training, 100 kills of a run
	@$(VENV) -m pytest tests/test_sparsity/test_properties.py \
	  tests/test_deploy/test_programs.py \
	  tests/test_sparsity/test_random_training.py \
	  tests/test_engine/test_saving.py tests/test_engine/test_arguments.py \
	  $(ARGS)

lint: setup  ## ruff, mypy and, for the kernels, clang-format
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) -m mypy
	@$(dir $(VENV))clang-format --dry-run -Werror sift_mm/kernels/csrc/*

# Leaks are left out: Python itself has them. Memory that is not to be had is
# an error to PyTorch, as it is without the sanitizer.
sanitize: export SIFT_MM_KERNEL_FLAGS = -O1 -g -fsanitize=address,undefined \
	-fno-sanitize-recover=undefined
sanitize: setup  ## test the kernels under address and UB sanitizers
	@ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 LD_PRELOAD="$$(c++ \
	  -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  $(VENV) -m pytest -n 0 tests/test_kernels -k 'not test_build' $(ARGS)

clean:  ## remove what builds and tests leave; keeps .venv, data, work_dirs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
