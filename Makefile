# make install a virtual environment with the pinned packages and this project, editable   (no connection needed
# make demo    build the demo database, train, test, compare with a ridge baseline, draw    beyond the packages)
# make test    the fast test suite
# make test-long    the tests that take a second or more each
# make coverage    which lines the fast suite runs
# make site    build/site: the documentation as a site, with every command and the API
# make lint    style, types, and which module imports which
# make licenses    build/licenses.md: the licence of every package that is installed
# make sbom    build/sbom.json: a software bill of materials of them (CycloneDX)

PYTHON ?= python3
RUN := .venv/bin/python
SMART_IQA := .venv/bin/smart-iqa

.PHONY: install demo demo-swin demo-database test test-long test-slow coverage site lint licenses sbom clean

# A finished run is kept, a stopped one goes on. $(1) is the run's name.
define train
	@if [ -f results/$(1)/results.json ]; then echo "results/$(1) is complete; remove it to train again"; \
	elif [ -d results/$(1) ]; then $(RUN) train_swin.py --resume results/$(1); \
	else $(RUN) train_swin.py --config configs/$(1).yaml; fi
	$(SMART_IQA) ridge-baseline --checkpoint results/$(1)
	$(RUN) generate_paper_figures.py results/$(1) docs/network.json --output results/$(1)/figures
	$(SMART_IQA) report results/$(1)
endef

install: .venv/.installed

demo: install demo-database
	$(call train,demo)

demo-swin: install demo-database
	$(call train,demo_swin)

demo-database: install
	$(SMART_IQA) make-demo-database --output datasets/demo

test: .venv/.installed-dev
	$(RUN) -m pytest -m "not slow and not long" -n auto --dist worksteal

test-long: .venv/.installed-dev
	$(RUN) -m pytest -m "long and not slow" -n auto --dist worksteal

test-slow: .venv/.installed-dev
	$(RUN) -m pytest

coverage: .venv/.installed-dev
	$(RUN) -m pytest -m "not slow and not long" -n auto --dist worksteal --cov --cov-report=term:skip-covered

site: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

lint: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	rm -rf build/house
	for file in *.py; do mkdir -p build/house/$${file%.py} && cp $$file build/house/$${file%.py}/__init__.py; done
	cd build/house && PYTHONPATH=$(CURDIR) $(CURDIR)/.venv/bin/lint-imports --no-cache ../../pyproject.toml

# The tools have an environment of their own, so that they are not in the lists they make.
licenses: .venv/.installed .venv-supply/.installed
	mkdir -p build
	.venv-supply/bin/pip-licenses --python $(RUN) --format markdown --with-urls --output-file build/licenses.md

sbom: .venv/.installed .venv-supply/.installed
	mkdir -p build
	.venv-supply/bin/cyclonedx-py environment --output-format JSON --output-file build/sbom.json --pyproject pyproject.toml $(RUN)

.venv-supply/.installed: requirements-supply.txt
	test -x .venv-supply/bin/python || $(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-supply.txt
	touch $@

.venv/.installed: requirements.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .venv-supply build results/demo results/demo_swin datasets/demo
