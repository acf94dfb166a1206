# make train [ARGS="overrides"]     make test [ARGS="options of pytest"]     make lint     make fuzz
#
# Every path is relative, since make cannot handle a path with a space in it.
PYTHON ?= python3
ARGS ?=
ROUNDS ?= 100
PY := .venv/bin/python
STAMP := .venv/.installed
# Where Python keeps no bytecode, every start would compile PyTorch's sources anew: seven seconds.
# pip compiles in any case.
COMPILE := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

.PHONY: help setup train test fuzz lint format bench docs dist pins clean
.DELETE_ON_ERROR:

help:
	@echo 'make train [ARGS="data=ml1m data.root=FOLDER"]  set up and train (demo data by default)'
	@echo 'make test  [ARGS="-k titles"]                   set up and run the tests'
	@echo "make test  [ARGS=\"-m 'not slow'\"]               run those that take no long time"
	@echo 'make fuzz  [ROUNDS=100]                         damaged and hostile files, so many times the seeds of make test'
	@echo 'make lint                                       formatting, lint, types and imports, as in CI'
	@echo 'make format                                     format and fix what can be fixed'
	@echo 'make bench [ARGS="--root FOLDER"]               every benchmark of speed, and their table'
	@echo 'make docs                                       the documentation as a site, in build/site'
	@echo 'make dist                                       an sdist and a wheel, in dist/'
	@echo 'make setup                                      only create .venv'
	@echo 'make pins                                       renew constraints.txt (needs uv)'
	@echo 'make clean                                      remove .venv and caches'
	@echo 'Another interpreter: make PYTHON=python3.12 ...'

train: $(STAMP)
	$(PY) train.py $(ARGS)

# Bytecode of the package and the tests stays: each of the many processes would compile them anew.
test fuzz: export PYTHONDONTWRITEBYTECODE =

test: $(STAMP)
	$(PY) -m pytest $(ARGS)

fuzz: $(STAMP)
	GENRE_LIGHTNING_FUZZ=$(ROUNDS) $(PY) -m pytest tests/fuzz $(ARGS)

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo --no-cache

format: $(STAMP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(STAMP)
	$(PY) -m benchmarks.all $(ARGS)

# Strict: a link to a page that is not there fails. Nothing is fetched when the site is viewed.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# Built anew: setuptools takes along whatever an earlier build has left.
dist: $(STAMP)
	rm -rf build/lib build/bdist.* dist
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

setup: $(STAMP)

# .venv is whole or it is made anew: the stamp is written last and holds the folder's path, so an
# interrupted installation, a moved or copied folder and a removed interpreter are all noticed.
IGNORED := $(shell [ "`cat $(STAMP) 2>/dev/null`" = "`pwd`" ] && $(PY) -c '' 2>/dev/null || rm -f $(STAMP))

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "Python 3.11 or newer is needed; $(PYTHON) is " + sys.version.split()[0] \
	  + ". Name another one: make PYTHON=python3.12 ...")'
	@if uv --version >/dev/null 2>&1; then \
	  echo 'Creating .venv with uv'; \
	  uv venv --quiet --clear --python "`$(PYTHON) -c 'import sys; print(sys.executable)'`" .venv && \
	  uv pip install $(COMPILE) --python $(PY) --constraint constraints.txt \
	    --build-constraint constraints.txt --editable '.[dev]'; \
	else \
	  echo 'Creating .venv with pip, which takes some minutes (uv, where installed, takes seconds)'; \
	  $(PYTHON) -m venv --clear .venv && \
	  PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(PY) -m pip install \
	    --disable-pip-version-check --editable '.[dev]'; \
	fi
	@pwd > $(STAMP)

# The exact versions for every supported Python and platform, with markers where they differ.
pins:
	uv pip compile pyproject.toml --extra dev --universal --upgrade \
	  --python-version 3.11 --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make pins' --output-file constraints.txt

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
