# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11+ and a C/C++ compiler.

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check

.PHONY: help demo test check format transcript wheel clean
help:
	@echo "make demo        install into .venv, fetch a small base, ask it in four voices"
	@echo "make test        ruff, mypy and pytest, as CI runs them"
	@echo "make check       ruff and mypy alone"
	@echo "make format      let ruff rewrite the sources"
	@echo "make transcript  run the demo and put what it prints into README.md"
	@echo "make wheel       build dist/*.whl and prove that it works without this checkout"
	@echo "make clean       remove .venv, dist and caches; models stay where \`modelctl info\` says"

demo: .venv/installed
	@.venv/bin/python examples/demo.py

test: check
	.venv/bin/pytest $(PYTEST_ARGS)

check: .venv/installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: .venv/installed-dev
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

transcript: .venv/installed-dev
	.venv/bin/python scripts/transcript.py

wheel: .venv/installed
	rm -rf dist
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	.venv/bin/python scripts/check_wheel.py dist/*.whl

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis examples/*.gguf

# The target is pip, not python: where the system splits venv off, a failed venv leaves a python without pip behind.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "modelctl needs Python 3.11 or newer, and $(PYTHON) is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/pip
	@echo "Installing modelctl into .venv. The first time, pip compiles llama.cpp, which takes several minutes;"
	@echo "it keeps the result, so the next installation takes seconds."
	@$(PIP) install --editable . || { \
	  echo "The installation failed. If llama-cpp-python did not build: is there a C++ compiler (c++ --version)?"; exit 1; }
	@touch $@

# --group came with pip 25.1; a new venv may have an older pip.
.venv/installed-dev: pyproject.toml | .venv/installed
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	$(PIP) install --quiet --group dev
	@touch $@
