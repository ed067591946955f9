# make install   a virtual environment with everything
# make demo      train on embedded smart-home commands, before/after table, two predictions
# make test      lint, types, tests

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo

.PHONY: install demo test lint types pytest clean

install: $(VENV)/.installed

# Installed anew whenever the dependencies change.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/llm-arch fit -c task/text_classification --output $(OUTPUT) --overwrite
	$(BIN)/llm-arch predict --model $(OUTPUT)/model --text 'make the bedroom a bit brighter' 'how warm is it in the kitchen'

test: lint types pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

pytest: install
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
