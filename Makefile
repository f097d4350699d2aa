# Needs make and Python 3.10+, nothing else. Every target sets up what it needs, once.
#
#   make demo     watch a required field being added to three full databases
#   make test     the quick tests, on SQLite and PostgreSQL      make test ARGS="-k operations"
#   make test-all every test, on every database, the newer ones too   the servers and the browser: see CONTRIBUTING.md
#   make test-newer the tests on MySQL, and on a newer MariaDB and PostgreSQL; ARGS=mysql for one of them
#   make simulate workers, kills, lost messages on a clock of their own, 60 s of schedules; SEED=... repeats one
#   make lint     ruff, mypy and import-linter
#   make docs     the documentation, in docs/_build
#   make matrix   the tests on every Python, Django, driver and PostgreSQL that is reachable
#   make bench    how fast each way to fill a column is, on each database; ROWS=20000 RUNS=1 for a quick one
#   make bench-scale     what a row costs as the table grows; ROWS=1000000 leaves out the largest
#   make bench-scale-out how a fill gets faster with more workers: measured, and simulated for 1,000,000,000 rows
#   make bench-traffic   what a site's users notice of each way; ROWS=100000 RUNS=1 for a quick one
#   make screenshots   the pictures of the admin in docs/images
#   make clean    remove what the others made
#
# PYTHON=python3.11  DJANGO='django==5.2.*'  VENV=.venv-5.2   another Python or Django, in a place of its own

VENV ?= .venv
DJANGO ?=
ARGS ?=
ROWS ?=
RUNS ?=
python = $(VENV)/bin/python
constraints = $(VENV)/constraints.txt
bench = --page $(if $(ROWS),--rows $(ROWS)) $(if $(RUNS),--runs $(RUNS)) $(ARGS)

.PHONY: demo test test-all test-newer simulate lint docs matrix bench bench-scale bench-scale-out bench-traffic measured-bench measured-bench-scale \
	measured-bench-scale-out measured-bench-traffic screenshots clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(python) -m tools.demo $(ARGS)

test: $(VENV)/.test
	$(python) -m pytest -n auto $(ARGS)

test-all: $(VENV)/.test
	code=0; $(python) -m pytest -n auto --all $(ARGS) || code=$$?; $(if $(ARGS),,$(python) -m tools.newer_servers || code=$$?;) exit $$code

test-newer: $(VENV)/.test
	$(python) -m tools.newer_servers $(ARGS)

simulate: $(VENV)/.test
	SIMULATION_SECONDS=$(if $(SEED),0.01,60) SIMULATION_SEED=$(SEED) $(python) -m pytest -s --slow tests/simulation -k whatever $(ARGS)

lint: $(VENV)/.test $(VENV)/.lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.docs
	$(python) -m sphinx -W --keep-going -q docs docs/_build

matrix: $(python)
	$(python) -m tools.matrix $(ARGS)

# Both drivers of PostgreSQL and other packages, in a place of their own: the tests would take psycopg 3.
bench bench-scale bench-scale-out bench-traffic:
	@$(MAKE) --no-print-directory VENV=$(VENV)-bench measured-$@

measured-bench: $(VENV)/.bench
	$(python) -m benchmarks.speed $(bench)

measured-bench-scale: $(VENV)/.bench
	$(python) -m benchmarks.scale $(bench)

measured-bench-scale-out: $(VENV)/.bench
	$(python) -m benchmarks.scale_out --page $(ARGS)

measured-bench-traffic: $(VENV)/.bench
	$(python) -m benchmarks.traffic $(bench)

screenshots: $(VENV)/.test
	$(python) -m tools.screenshots

clean:
	rm -rf .venv* .matrix .bench docs/_build .*_cache .hypothesis

# One stamp for each group of pyproject.toml: there when it is installed.
$(VENV)/.%: pyproject.toml $(constraints)
	$(python) -m pip install -q --disable-pip-version-check 'pip>=25.1'  # the first that knows of groups
	$(python) -m pip install -q --disable-pip-version-check -c $(constraints) -e . --group $* $(if $(DJANGO),'$(DJANGO)')
	@touch $@

# A Django that is asked for by name is not held to the locked one.
$(constraints): constraints.txt | $(python)
	$(if $(DJANGO),grep -v '^django[=-]',cat) $< >$@

$(python):
	python=$(or $(PYTHON),$$(tools/find_python.sh)) && $$python -m venv $(VENV)

.SECONDARY:
