# make book    the book in _book/, by Quarto if it is on PATH, otherwise by render/ (BOOK=quarto|pandoc)
# make test    everything that CI checks          make serve    the book on http://localhost:8000
# make claims  every chapter executed under other numerics: an hour or less
# make mutants small faults planted in kernels and gradients: do the checks find them?
# make lowest  `make test` with the lowest versions that settings.ini admits (PYTHON: a Python 3.10)
# make lint, notebooks, ...    one step of `make test` (tools/check.py lists them)
# make outputs all notebooks executed afresh      make bench    speed beside other programs
# make experiments   the runs that take longer, whose results the chapters show
PYTHON ?= python3
BOOK ?= $(if $(shell command -v quarto 2>/dev/null),quarto,pandoc)
PORT ?= 8000
BIN := .venv/bin
STEPS := lint uncompiled numerics tests notebooks bounds
READY := .venv/.ready
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)
comma := ,
# each call of `say` prints one line of progress
say = @printf '== %s\n' "$(1)"

.PHONY: book test claims mutants lowest $(STEPS) outputs serve bench experiments clean
.DEFAULT_GOAL := book

$(READY): settings.ini setup.py pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "dlnotes needs Python 3.10 or later, and there is no '$(PYTHON)': make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "dlnotes needs Python 3.10 or later; '$(PYTHON)' is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3"; exit 1; }
	$(call say,making the virtual environment .venv and installing into it (a minute or two))
	@$(PYTHON) -m venv --clear .venv >.venv.log 2>&1 || { cat .venv.log; \
	  echo "Could not make a virtual environment: Python's venv module is missing or broken (see above)."; exit 1; }
	@$(BIN)/python -m pip install --quiet --retries 2 --timeout 30 --editable '.[dev]' >.venv.log 2>&1 || { \
	  echo "Could not install what dlnotes needs: is the package registry within reach? (all of pip's words: .venv.log)"; exit 1; }
	@mv .venv.log .venv/install.log
	@touch $@

book: $(READY)
	$(call say,building the book with $(BOOK))
ifeq ($(BOOK),quarto)
	@command -v quarto >/dev/null || { \
	  echo "There is no quarto on the PATH; 'make book BOOK=pandoc' does without."; exit 1; }
	@quarto render
else ifeq ($(BOOK),pandoc)
	@python -m render
else
	@echo "BOOK=$(BOOK) is neither quarto nor pandoc"; exit 1
endif
	@echo "The book: file://$(CURDIR)/_book/index.html (or 'make serve': http://localhost:$(PORT))"

serve:
	@test -f _book/index.html || $(MAKE) book
	@echo "The book: http://localhost:$(PORT) (Ctrl-C ends)"
	@$(PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory _book

test: $(READY)
	@python -m tools.check

$(STEPS): $(READY)
	@python -m tools.check $@

claims: $(READY)
	@python -m tools.claims

mutants: $(READY)
	@python -m tools.mutants

lowest:
	@$(PYTHON) -m tools.versions lowest

outputs: $(READY)
	@nbdev_export
	@for nb in $(NOTEBOOKS); do echo "== executing $$nb"; \
	  jupyter execute --inplace $$nb >.venv/outputs.log 2>&1 || { cat .venv/outputs.log; exit 1; }; done
	@nbdev_clean

bench: $(READY)
	@python -m bench.perceptron
	@for part in kernels layers recurrent normalization attention models; do \
	  OPENBLAS_THREAD_TIMEOUT=10 python -m bench.$$part || exit 1; done  # else NumPy's threads wait in the way

experiments: $(READY)
	$(call say,digits: ten seeds$(comma) about five seconds each)
	@python -m experiments.digits_cnn
	$(call say,letters$(comma) and how far back RNN$(comma) LSTM and GRU remember)
	@python -m experiments.char_rnn
	@python -m experiments.long_memory
	$(call say,the place of the norm$(comma) and warm-up: two minutes)
	@python -m experiments.norm_place
	$(call say,dates by four models$(comma) five seeds of one to five minutes each)
	@for model in seq2seq attention transformer_added transformer; do python -m experiments.dates $$model || exit 1; done

clean:
	rm -rf .venv .venv.log .cache _book .quarto build dist *.egg-info
