# groundup: every command sets up .venv the first time. `make PYTHON=python3.12 …` chooses the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY     := $(BIN)/python
SHOW    = $(shell sed -n 's/^showcase *= *//p' settings.ini)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help run test lab export check lint clean-nbs clean bench torture

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */  make \1\t/p' Makefile | expand -t 20

run: $(VENV)/.ready   ## train a network, write a page about it; or run a chapter: make run NB=00a_data
ifdef NB
	@$(PY) tools/run_notebook.py nbs/$(notdir $(basename $(NB))).ipynb --stream --html _out
else
	@$(BIN)/groundup-train $(SHOW) $(ARGS)
endif

test: $(VENV)/.ready  ## everything CI checks, cheap things first
	@$(PY) tools/notebook2script.py --check
	@$(BIN)/ruff check -q .
	@$(PY) -m pytest
	@$(PY) tools/run_notebook.py --durations 10

lab: $(VENV)/.lab     ## open the notebooks in Jupyter
	@$(BIN)/jupyter-lab nbs

export: $(VENV)/.ready  ## notebooks -> exp/ and groundup/
	@$(PY) tools/notebook2script.py

check: $(VENV)/.ready   ## are exp/ and groundup/ what the notebooks say?
	@$(PY) tools/notebook2script.py --check

lint: $(VENV)/.ready    ## ruff, over code and notebooks
	@$(BIN)/ruff check .

clean-nbs: $(VENV)/.ready  ## strip counts and stray metadata from notebooks, give cells their ids, keep outputs
	@$(BIN)/nbdev-clean

bench: $(VENV)/.ready   ## measure the tools on this machine
	@$(PY) benchmarks/tools.py

torture: $(VENV)/.ready ## the long form of the tests that attack tools, data and training, and their figures
	@$(PY) -c "import pathlib; pathlib.Path('_out/torture.jsonl').unlink(missing_ok=True)"
	@GROUNDUP_TORTURE=1 $(PY) -m pytest -m torture --durations 10
	@$(PY) tests/figures.py

clean:           ## remove what was built, the environment included
	rm -rf $(VENV) _out build dist *.egg-info .gitconfig .pytest_cache .ruff_cache .hypothesis

# The environment: made once, made again when what it is made from changes.
$(VENV)/.ready: settings.ini constraints.txt setup.py
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'groundup needs Python 3.11 or newer, this is %s: choose one with make PYTHON=…' % sys.version.split()[0])"
	@echo "setting up $(VENV) (once; a minute or more)"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q -c constraints.txt -e ".[dev]"
	@$(PY) tools/hooks.py
	@touch $@

$(VENV)/.lab: $(VENV)/.ready
	@$(PY) -m pip install -q -c constraints.txt -e ".[lab]"
	@touch $@
