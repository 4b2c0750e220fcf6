# Two commands on a bare machine with Python 3.11 or newer:
#   make demo   renders synthetic micrographs with known truth and analyses them (no torch)
#   make test   lint, types, import contract and tests
# and two that take longer:
#   make slow      the tests that take more than five seconds each
#   make studies   the published studies at their smallest size, beside flatscope
# PYTHON=/path/to/python3.12 chooses another interpreter.
# Whoever changes the workbench's page (web/) needs Node 20.19 or newer:
#   make page         builds it into src/flatscope/app/server/static, which is checked in
#   make page-check   builds it again and compares

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
BIN := .venv/bin
# The version stands in __init__.py.
RECIPE_OF_INSTALL := pyproject.toml constraints.txt src/flatscope/__init__.py

STUDIES := saito2019 yang2024-layers yang2024-twist larsen2021 defectfinder2018 maksov2019 ke2023

.PHONY: demo test lint types contract tests slow studies $(STUDIES) page page-check format clean

demo: .venv/installed-base
	$(BIN)/flatscope demo --out demo

test: lint types contract tests

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

contract: .venv/installed-test
	$(BIN)/lint-imports

# One thread a process: torch and ONNX Runtime spin against each other otherwise.
tests: .venv/installed-test
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --durations=20

slow: .venv/installed-test
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow --durations=10

# Independent of one another: make -j2 runs two at a time, one thread each.
studies: $(STUDIES)

$(STUDIES): .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/flatscope reproduce $@ --size quick --out reproduced

page: web/node_modules/installed
	cd web && npm run --silent build

page-check: web/node_modules/installed
	cd web && npm run --silent build -- --outDir ../build/page --emptyOutDir --logLevel warn
	diff -r build/page src/flatscope/app/server/static

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo reproduced build web/node_modules src/*.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/created:
	@test -n "$(PYTHON)" || { echo "flatscope needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "this Python makes no virtual environments: install its venv package (Debian: python3-venv)" >&2; exit 2; }
	@touch $@

# Editable, so that what runs is always the tree; the stamps keep a second run from installing again.
.venv/installed-base: .venv/created $(RECIPE_OF_INSTALL)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-test: .venv/installed-base $(RECIPE_OF_INSTALL)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,vendor,simulate,multislice,movies,exports,dev]'
	@touch $@

web/node_modules/installed: web/package-lock.json
	cd web && npm ci --silent
	@touch $@
