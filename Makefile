# Set-up and the two main jobs. The plain pip lines behind them are in README.md.
PYTHON ?= python3
VENV ?= .venv
# Processes of one thread each that the tests run in.
WORKERS ?= 2
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check figures bench clean

demo: $(READY)
	$(BIN)/landscape demo -o demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

figures: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" sh figures/contrast.sh
	PATH="$(abspath $(BIN)):$$PATH" sh figures/curvature.sh
	for name in minima spectra noise radius prediction seeds; do \
	  $(BIN)/python figures/$$name.py || exit 1; \
	done

bench: $(READY)
	$(BIN)/python tests/benchmarks/foundations.py
	$(BIN)/python tests/benchmarks/curvature.py
	$(BIN)/python tests/benchmarks/traces.py
	$(BIN)/python tests/benchmarks/surfaces.py
	$(BIN)/python tests/benchmarks/sharpness.py
	$(BIN)/python tests/benchmarks/sharpness.py --examples 1200 --skip ResNet
	$(BIN)/python tests/benchmarks/optim.py
	$(BIN)/python tests/benchmarks/large.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info
