# Set-up and the two main jobs. The plain pip lines behind them are in README.md.
PYTHON ?= python3
VENV ?= .venv
# Processes of one thread each that the tests run in.
WORKERS ?= 2
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test docs gallery notebook figures bench clean

demo: $(READY)
	$(BIN)/landscape demo -o demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Pictures of docs/gallery.md, by the commands that stand in it.
gallery: $(READY)
	rm -rf build/gallery && $(BIN)/python docs/run.py docs/gallery.md build/gallery
	mkdir -p docs/gallery && cp build/gallery/*.png docs/gallery

notebook: $(READY)
	rm -rf build/notebook && $(BIN)/python docs/run.py notebooks/contrast.ipynb build/notebook

figures: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" sh figures/contrast.sh
	PATH="$(abspath $(BIN)):$$PATH" sh figures/curvature.sh
	for name in minima spectra noise radius prediction seeds edges; do \
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
	$(BIN)/python tests/benchmarks/processes.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist site *.egg-info
