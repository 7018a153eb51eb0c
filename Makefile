# `make demo` shows the main job, `make test` tests everything. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CELERY := .venv/.celery
BROWSER := .venv/.browser
BINFAB := .venv-fab/bin
STAMPFAB := .venv-fab/.installed
BIN31 := .venv-3.1/bin
STAMP31 := .venv-3.1/.installed

.PHONY: demo test test-browser test-fab faults celery airflow-3.1 lint format bench clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %s" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a minute or two, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# With KEEP=1, Airflow stays up, and the page of the push with it.
demo: $(STAMP)
	@KEEP=$(KEEP) exec $(BIN)/python -m example_dags.demo.run

test: $(STAMP)
	$(BIN)/python -m pytest --cov --cov-report=term

# Two minutes on two cores: the page in a real Chromium, through a whole Airflow. It needs the package chromium.
test-browser: $(BROWSER)
	$(BIN)/python -m pytest tests/browser

$(BROWSER): $(STAMP)
	@echo "Installing what drives a browser into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,browser]'
	@touch $@

# A minute on two cores: who may see the page, with the rights for single DAGs of Airflow's FAB auth manager. It has an
# environment of its own, because it needs other versions than constraints.txt names.
test-fab: $(STAMPFAB)
	$(BINFAB)/python -m pytest -W default tests/fab

$(STAMPFAB): pyproject.toml constraints-fab.txt
	@test -x $(BINFAB)/python || $(PYTHON) -m venv .venv-fab
	@echo "Installing Airflow with FAB into .venv-fab (a minute or two, once) ..."
	@$(BINFAB)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-fab.txt apache-airflow apache-airflow-providers-fab apache-airflow-providers-sqlite 'pytest>=9' --editable .
	@touch $@

# An hour and a quarter on two cores: simulated schedules, then real processes, kills, outages, stalls and late writes.
faults: $(STAMP)
	$(BIN)/python -m tests.simulation
	$(BIN)/python -m tests.faults --whole

# Five minutes on two cores: the sharded example on two Celery workers, one of which is killed.
celery: $(CELERY)
	$(BIN)/python -m tests.celery

$(CELERY): $(STAMP)
	@echo "Installing Celery and a broker into .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,celery]'
	@touch $@

# Three minutes on two cores: what is different in an Airflow without a task state store, in a whole Airflow 3.1.
airflow-3.1: $(STAMP31)
	$(BIN31)/python -m pytest tests/airflow31

$(STAMP31): pyproject.toml constraints-3.1.txt
	@test -x $(BIN31)/python || $(PYTHON) -m venv .venv-3.1
	@echo "Installing Airflow 3.1 into .venv-3.1 (a minute or two, once) ..."
	@$(BIN31)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-3.1.txt apache-airflow apache-airflow-providers-sqlite 'pytest>=9' --editable .
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# About an hour, on a machine that does nothing else: each prints its figures beside a baseline of the same run,
# and keeps them in benchmarks/results, as JSON and as a picture.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.lookup
	$(BIN)/python -m benchmarks.polling
	$(BIN)/python -m benchmarks.sharing
	$(BIN)/python -m benchmarks.login
	$(BIN)/python -m benchmarks.submit

clean:
	rm -rf .venv .venv-3.1 .venv-fab .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
