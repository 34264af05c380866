# make lab     open the course in JupyterLab
# make course  run every solutions notebook from top to bottom, into build/
# make test    run all tests
# make benchmark    how fast the library is against the published recipe, and whether it computes the same
# Each sets up what is missing first: a virtual environment in .venv with the versions in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab course test benchmark notebooks setup setup-tests
.DEFAULT_GOAL := lab

setup: .venv/ready

.venv/ready: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=python3.11 …"; exit 1; }
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
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/papermill --cwd solutions "$$notebook" "build/$$(basename "$$notebook")" || exit 1; \
	done
	@echo "Done. The notebooks with their results are in build/."

# The notebooks run in their quick profile; two at a time, with a thread each, which is faster than one after the other with two.
test: setup-tests
	COURSE_PROFILE=quick OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations=15 \
		--nbmake --nbmake-timeout=1200 tests notebooks

benchmark: setup
	$(BIN)/python -m tools.benchmark

# For authors: make both notebooks of each solutions/NN_name.py (executes them).
notebooks: setup
	$(BIN)/python -m tools.build_notebooks
