# make demo   set up, run the job on data/, verify the export, say how to load it
# make test   set up, then lint, types and tests
# make setup  only .venv with everything pinned in constraints.txt

PYTHON ?= python3
VENV := .venv/bin/python

# Recipes run in the checkout, so relative paths hold whatever the checkout's path contains.
.PHONY: setup demo test lint types cli-reference clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Error: Python 3.11 or newer is needed; name one with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo 'Setting up .venv: a minute or more, and longer where torch has to be downloaded'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(VENV) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch .venv/installed

demo: setup
	$(VENV) -m jobs run data/corpus --out out/demo --context-length 256 --d-model 64 --heads 4 --overwrite
	$(VENV) -m jobs verify out/demo
	@echo
	@echo 'Load it with plain safetensors:'
	@echo
	@cat examples/attention.py
	@echo
	$(VENV) examples/attention.py out/demo

test: lint types
	$(VENV) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: setup
	$(VENV) -m ruff format --check --quiet .
	$(VENV) -m ruff check --quiet .
	.venv/bin/lint-imports --no-cache --no-logo

types: setup
	$(VENV) -m mypy

cli-reference: setup
	$(VENV) docs/generate_cli.py > docs/cli.md

clean:
	rm -rf .venv out build dist
