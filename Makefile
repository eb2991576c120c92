# Two commands: `make demo` and `make test`. Both set up .venv first, when it is not there or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check benchmark clean

demo: $(STAMP)
	$(BIN)/autoglm-compress run examples/phone/pipeline.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(STAMP)
	$(BIN)/python benchmarks/distill.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[phone-bed,heic,parquet,trt-rtx,provenance,dev]'
	touch $@

clean:
	rm -rf $(VENV) artifacts
