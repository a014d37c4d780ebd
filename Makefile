# The environment is made once and used again only while its key fits: pyproject.toml, constraints.txt and the Python
# version. PL_PREFOPT_VENV puts it elsewhere, for instance where several clones share it.
PYTHON ?= python3
VENV := $(or $(PL_PREFOPT_VENV),.venv)
RUN := $(VENV)/bin/python
KEY := $(shell $(PYTHON) -c "import hashlib, sys; files = [open(f, 'rb').read() for f in ('pyproject.toml', 'constraints.txt')]; print(hashlib.sha256(b''.join(files) + sys.version.encode()).hexdigest()[:16])")
PACKAGES := $(VENV)/made-from-$(KEY)
PROJECT := $(VENV)/project-$(KEY)$(subst /,-,$(subst $() ,_,$(CURDIR)))

export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help environment quickstart test lint build

help:
	@echo "make quickstart   run the text demo and show what it learned"
	@echo "make test         run the tests"
	@echo "make lint         ruff and pyright"
	@echo "make build        sdist and wheel in dist/"

environment: $(PROJECT)

$(PACKAGES):
	@echo "making the environment in $(VENV): some minutes, once"
	@test "$$($(RUN) -c 'import sys; print(sys.version)' 2>/dev/null)" = "$$($(PYTHON) -c 'import sys; print(sys.version)')" \
		|| $(PYTHON) -m venv --clear "$(VENV)"
	@rm -f "$(VENV)"/made-from-* "$(VENV)"/project-*
	@$(RUN) -m pip install -qq -c constraints.txt -U "pip>=24" setuptools wheel
	@$(RUN) -m pip install -qq -c constraints.txt -e ".[test]" --config-settings editable_mode=compat
	@touch "$@"

$(PROJECT): $(PACKAGES)
	@$(RUN) -m pip install -qq --no-deps --no-build-isolation -e . --config-settings editable_mode=compat
	@rm -f "$(VENV)"/project-*
	@touch "$@"

quickstart: environment
	@$(RUN) -m pl_prefopt demo text-dpo

test: environment
	@$(RUN) -m pytest -q -n 2 --dist worksteal

lint: environment
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pyright --pythonpath "$(RUN)"

build: environment
	@$(RUN) -m build -q
