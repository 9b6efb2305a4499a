# The two commands of the README are `make demo` and `make test`; each sets itself up in .venv.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
T ?=
K ?=

.PHONY: setup demo test test-all check bench fmt clean

setup: $(STAMP)

# torch comes first and alone, at exactly this version, so that no other package's looser range pulls a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null || python3 -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Wardround needs Python 3.11: make setup PYTHON=/path/to/python3.11")'
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $(STAMP)

demo: setup
	$(BIN)/wardround-simulate experiment=demo

test: setup
	$(BIN)/python -m pytest -n 2 $(T) $(if $(K),-k '$(K)')

test-all: setup
	$(BIN)/python -m pytest -n 2 $(T) $(if $(K),-k '$(K)')
	$(BIN)/python -m pytest -m slow --timeout=900 $(T)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py tests/test_configs.py

bench: setup
	$(BIN)/python -m simulation.bench --all

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info
