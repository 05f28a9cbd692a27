# `make demo` and `make test` are all a new checkout needs.
PYTHON ?= python3
VENV := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test hf attack sanitize lint docs clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## make .venv and install all that is needed (once)
	@$(PYTHON) tools/setup_env.py

demo: setup  ## train a Sparse Wide RetinaNet and its dense baseline, compare
	@$(VENV) -m demo.demo

test: setup  ## run the tests; ARGS='-k rigl' picks some
	@$(VENV) -m pytest $(ARGS)

# Neither version imports beside the libraries: MMPretrain refuses 5, and 4.57
# the tokenizers. The hub's client of 4.57 needs requests.
HF := .venv/transformers
hf: setup  ## test networks of Hugging Face's transformers, 4.57 and 5
	@$(VENV) -m pip install -q requests
	@[ -d $(HF)4 ] || $(VENV) -m pip install -q --no-deps --target $(HF)4 \
	  'transformers==4.57.*' 'huggingface_hub<1' 'tokenizers<0.23'
	@[ -d $(HF)5 ] || $(VENV) -m pip install -q --no-deps --target $(HF)5 \
	  'transformers==5.*'
	@for version in 4 5; do PYTHONPATH=$(HF)$$version $(VENV) -m pytest -n 0 \
	  tests/test_layers/test_hugging_face.py || exit 1; done

attack: export SIFT_MM_CASES ?= 20000
attack: export SIFT_MM_KILLS ?= 100
attack: setup  ## 20,000 random cases of each kind, 100 kills: some hours
	@$(VENV) -m pytest $(ARGS) \
	  $$(grep -rlE 'SIFT_MM_(CASES|KILLS)' tests --include='test_*.py')

lint: setup  ## ruff, mypy, rules of style and, for the kernels, clang-format
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check .
	@$(VENV) tests/style_check.py
	@$(VENV) -m mypy
	@$(dir $(VENV))clang-format --dry-run -Werror sift_mm/kernels/csrc/*

docs: setup  ## build the pages into docs/_build/html; a warning is an error
	@$(VENV) -m pip install -q -r requirements-docs.txt
	@$(VENV) -m sphinx -W --keep-going -q -j auto docs docs/_build/html

# Leaks are left out: Python itself has them. Memory that is not to be had is
# an error to PyTorch, as it is without the sanitizer.
sanitize: export SIFT_MM_KERNEL_FLAGS = -O1 -g -fsanitize=address,undefined \
	-fno-sanitize-recover=undefined
sanitize: setup  ## test the kernels under address and UB sanitizers
	@ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 LD_PRELOAD="$$(c++ \
	  -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  $(VENV) -m pytest -n 0 tests/test_kernels -k 'not test_build' $(ARGS)

clean:  ## remove what builds and tests leave; keeps .venv, data, work_dirs
	rm -rf build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
