# Two commands on a fresh machine: `make demo` and `make test`.  Everything lies in $(VENV).
VENV ?= .venv
PYTHON ?= python3
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONDONTWRITEBYTECODE =

py := $(VENV)/bin/python
# An environment is right when it was made from these very files, for this very checkout.
stamp := $(VENV)/.made-from-$(shell cat pyproject.toml constraints.txt | cat - <(pwd) <($(PYTHON) -V) | sha256sum | cut -c1-16)

.PHONY: help env browser demo test reliability check format docs bench clean

help:
	@echo "make demo    index a few hundred drawn pictures and search them"
	@echo "make test    the whole test suite, with coverage"
	@echo "make reliability   the battery of crashes and power cuts in its long form"
	@echo "make check   style, types, import rules, generated docs"
	@echo "make format  put the code into shape"
	@echo "make docs    generate docs/cli.md"
	@echo "make bench   measure, and hold the figures against the goals"

env: $(stamp)

$(stamp):
	test -x $(py) || $(PYTHON) -m venv $(VENV)
	$(py) -m pip install --quiet --upgrade 'pip>=25.1'
	PYTHONWARNINGS=ignore $(py) -m pip install --quiet --constraint constraints.txt --group dev --editable .
	rm -f $(VENV)/.made-from-*
	touch $@

# The page's tests drive the system's Chromium, and are skipped where there is none.
browser:
ifdef CI
	command -v chromium >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null
endif

demo: env
	$(py) -m flows.demo

test: env browser
	$(py) -m coverage erase
	OMP_NUM_THREADS=1 $(py) -m coverage run -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)
	$(py) -m coverage combine --quiet
	$(py) -m coverage report

# Hours.  Every test adds to $(LOOKALIKE_TALLY) what it counted.
LOOKALIKE_TALLY ?= $(CURDIR)/reliability.jsonl
reliability: env
	rm -f $(LOOKALIKE_TALLY)
	OMP_NUM_THREADS=1 LOOKALIKE_LONG=1 LOOKALIKE_TALLY=$(LOOKALIKE_TALLY) $(py) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --timeout 0 tests/reliability $(ARGS)

check: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(py) docs/cli.py --check

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: env
	$(py) docs/cli.py

# Half an hour on two cores.  ARGS="--only pipeline,scan --against benchmarks/results/FORMER.json"
bench: env
	$(py) benchmarks/run.py $(ARGS)

clean:
	rm -rf $(VENV) .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
