# make run     install into .venv and run gradient_vanishing on its default config
# make test    the tests and the doctests         make lint   ruff and mypy
# make bench   calcdl beside its peers            make clean  all but your runs/
#
# PYTHON=python3.12 picks the interpreter; EXPERIMENT=activations and ARGS='--seeds 4' pick another run.

SHELL := /bin/sh
PYTHON ?=
VENV ?= .venv
EXPERIMENT = gradient_vanishing
CONFIG = configs/$(EXPERIMENT).toml
ARGS =
python = "$(VENV)/bin/python"

# Stamps are compared by the shell and not by make, which cannot name a file in a folder with spaces.
# $(call install,EXTRA): calcdl with that extra, unless it was done since pyproject.toml last changed.
define install
@stamp="$(VENV)/.installed-$(1)"; \
if ! [ "$$stamp" -nt pyproject.toml ]; then \
    $(make_venv) && \
    $(python) -m pip install --quiet --disable-pip-version-check --editable ".$(if $(1),[$(1)])" && \
    touch "$$stamp"; \
fi
endef

# A shim can be on the PATH and have nothing behind it, so every candidate is asked to run.
suits = -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11) or sys.version_info[3] != "final")'
define make_venv
{ if ! [ -e "$(VENV)/pyvenv.cfg" ]; then \
    found=; \
    for candidate in $(if $(PYTHON),"$(PYTHON)",python3.15 python3.14 python3.13 python3.12 python3.11 python3 python); do \
        if "$$candidate" $(suits) >/dev/null 2>&1; then found=$$candidate; break; fi; \
    done; \
    if [ -z "$$found" ]; then \
        echo "calcdl: error: $(if $(PYTHON),PYTHON=$(PYTHON) is not,no) Python 3.11 or newer with the venv module;" \
             "install one or name it: make PYTHON=/path/to/python3.12" >&2; \
        exit 2; \
    fi; \
    echo "installing calcdl into $(VENV) with $$("$$found" --version); this takes a minute or two"; \
    "$$found" -m venv "$(VENV)" || exit 2; \
fi; \
$(python) -c '' 2>/dev/null || \
    { echo "calcdl: error: $(VENV) has no working Python; remove it (make clean) and try again" >&2; exit 2; }; \
$(python) -m pip --version >/dev/null 2>&1 || $(python) -m ensurepip >/dev/null; }
endef

.PHONY: run test lint bench clean

run:
	$(call install)
	@$(python) -m calcdl.experiments.$(EXPERIMENT) "$(CONFIG)" $(ARGS)

test:
	$(call install,test)
	$(python) -m pytest $(ARGS)

lint:
	$(call install,dev)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

bench:
	$(call install,bench)
	$(python) -m benchmarks.check
	$(python) -m benchmarks.calculus
	$(python) -m benchmarks.optimisation
	$(python) -m benchmarks.gradients
	$(python) -m benchmarks.models
	$(python) -m benchmarks.run $(ARGS)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
