# The two commands of the README are `make demo` and `make test`; each sets itself up in .venv.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
TOOLS := .venv/tools
T ?=
K ?=

.PHONY: setup demo test test-all check bench sbom audit-deps fmt clean

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

# Both tools live in an environment of their own: what they need is no part of what a hospital installs.
$(TOOLS)/.installed:
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS) 2>/dev/null || python3 -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	@touch $@

# What is installed in .venv, CycloneDX 1.6. A site's own: make sbom PYTHON_OF=/path/to/its/bin/python
PYTHON_OF ?= $(BIN)/python
sbom: setup $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(PYTHON_OF)

# Exit code 3: a pinned version is known to be vulnerable; 4: the service did not answer.
audit-deps: $(TOOLS)/.installed
	@$(TOOLS)/bin/python .ci/audit-deps

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build *.egg-info
