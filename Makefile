# make demo      a film site that searches by meaning, from nothing, with nothing else to install
# make test      all tests, against a PostgreSQL of their own
# make infinity  the tests of remote embedders against a real server, which it installs
# make optimum  the tests of local models on the library optimum, which it installs
# make bench     all figures of docs/benchmarks.md
# make clean     everything that these have made

PYTHON ?= python3
PY := .venv/bin/python
MANAGE := $(PY) manage.py

.PHONY: demo test infinity optimum lint bench stop clean

demo: .venv/ready
	$(MANAGE) postgres start
	$(MANAGE) migrate --verbosity 0
	$(MANAGE) load_films
	$(MANAGE) load_posts
	$(MANAGE) embed_worker --drain
	$(MANAGE) demo

# To these it makes no difference which PostgreSQL serves: pages, models, providers, words.
ONCE := admin admin_browser admin_sidecars another_model blog blog_browser breaker browser \
	cohere_voyage contract deployment embedders export faults_texts films infinity langchain \
	load_films local_models long_way memory metrics neighbours openai openai_faults optimum postgres \
	postgres_refusals progress provider_processes providers rate_limits real_model real_posts \
	remote_worker schedule sweep_command users_tests web_process

# The second run is on the oldest PostgreSQL.
test: .venv/ready lint
	$(PY) -m pytest --cov --cov-report=term --maxfail 20
	[ -n "$$DATABASE_URL" ] || EMBEDDED_POSTGRES_VERSION=16 $(PY) -m pytest --quiet --maxfail 20 \
		$(ONCE:%=--ignore tests/test_%.py)

infinity: .venv/ready .venv-infinity/ready
	$(PY) -m pytest tests/test_infinity.py

optimum: .venv/ready .venv-optimum/ready
	$(PY) -m pytest tests/test_optimum.py

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
	rm -rf .venv .venv-infinity .venv-optimum .postgres .cache .coverage* .mypy_cache .pytest_cache .ruff_cache

# Made last, so that an interrupted installation is taken up again.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embedsync needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[local,onnx,q2,chunks,openai]" --group demo --group test
	touch $@

# A server wants other versions of what embedsync's own environment has.
.venv-infinity/ready: tests/infinity-constraints.txt
	$(PYTHON) -m venv .venv-infinity
	.venv-infinity/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	.venv-infinity/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/infinity-constraints.txt torch==2.13.0
	.venv-infinity/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/infinity-constraints.txt "infinity-emb[server,torch]==0.0.78"
	touch $@

.venv-optimum/ready: tests/optimum-constraints.txt
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/optimum-constraints.txt torch==2.13.0
	.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/optimum-constraints.txt --editable ".[local]" \
		"sentence-transformers[onnx,openvino]"
	touch $@
