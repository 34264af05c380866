# make lab     open the course in JupyterLab
# make course  run every solutions notebook from top to bottom, into build/
# make check   lint, types, and the unit tests, no weights and no network: two minutes
# make test    make check, then every other test: real weights, notebooks, a browser
# make pictures  draw the README's pictures again, from the shipped circuits
# make benchmark    how fast the library is against the published recipe, and does it agree with it
# Each sets up what is missing first: a virtual environment in .venv with the versions in
# constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# Two tests at a time, with a thread each: faster than one after the other with two.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q
ELSEWHERE := weights or notebook or browser or slow

.PHONY: lab course check lint types unit test pictures benchmark notebooks setup setup-tests
.DEFAULT_GOAL := lab

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -e . -c constraints.txt
	@touch $@

setup-tests: .venv/ready-for-tests

.venv/ready-for-tests: .venv/ready
	$(BIN)/pip install --disable-pip-version-check -e ".[cluster,tests]" -c constraints.txt
	@touch $@

lab: setup
	$(BIN)/jupyter lab $(AS_ROOT) --LabApp.default_url=/lab/tree/notebooks

course: setup
	@mkdir -p build
	@for notebook in solutions/*.ipynb; do \
		echo "Running $$notebook …"; \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/papermill --cwd solutions \
			"$$notebook" "build/$$(basename "$$notebook")" || exit 1; \
	done
	@echo "Done. The notebooks with their results are in build/."

check: setup-tests
	@$(MAKE) --no-print-directory -j 3 lint types unit

lint: setup-tests
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

types: setup-tests
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# With the shapes in signatures checked on every call. An empty cache and no sources: a test that
# wants real weights without saying so, by its marker, fails.
unit: setup-tests
	@mkdir -p build
	SAE_CIRCUITS_CACHE=$(CURDIR)/build/no-weights HF_HUB_OFFLINE=1 PIP_NO_INDEX=1 $(PYTEST) \
		-m "not ($(ELSEWHERE))" --jaxtyping-packages=course_utils,beartype.beartype \
		--durations=10 tests

# The notebooks run in their quick profile: solutions, then readers' copies, which read what those
# have computed (tests/kept_results.py). Slow tests first, each given to the worker that is free.
test: check
	COURSE_PROFILE=quick $(PYTEST) --dist load --maxschedchunk 1 -m "$(ELSEWHERE)" --durations=10 \
		--nbmake --nbmake-timeout=600 tests notebooks

pictures: setup
	$(BIN)/python -m tools.draw_pictures

benchmark: setup
	$(BIN)/python -m tools.benchmark

# For authors: make both notebooks of each solutions/NN_name.py (executes them).
notebooks: setup
	$(BIN)/python -m tools.build_notebooks
