# make demo   a film site that searches by meaning, from nothing, with nothing else to install
# make test   all tests, against a PostgreSQL of their own
# make bench  all figures of docs/benchmarks.md
# make clean  everything that these have made

PYTHON ?= python3
PY := .venv/bin/python
MANAGE := $(PY) manage.py

.PHONY: demo test lint bench stop clean

demo: .venv/ready
	$(MANAGE) postgres start
	$(MANAGE) migrate --verbosity 0
	$(MANAGE) load_films
	$(MANAGE) load_posts
	$(MANAGE) embed_worker --drain
	$(MANAGE) demo

# The second run is on the oldest PostgreSQL; which one serves makes no difference to the others.
test: .venv/ready lint
	$(PY) -m pytest --cov --cov-report=term --maxfail 20
	[ -n "$$DATABASE_URL" ] || EMBEDDED_POSTGRES_VERSION=16 $(PY) -m pytest --quiet --maxfail 20 \
		--ignore tests/test_browser.py --ignore tests/test_real_model.py

lint: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/ready
	$(PY) bench/report.py

stop: .venv/ready
	$(MANAGE) postgres stop

clean:
	-[ ! -x $(PY) ] || $(MANAGE) postgres stop
	rm -rf .venv .postgres .cache .coverage* .mypy_cache .pytest_cache .ruff_cache

# Made last, so that an interrupted installation is taken up again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedsync needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[local,q2,chunks]" --group demo --group test
	touch $@
