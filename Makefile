# make install a virtual environment with the pinned packages and this project, editable   (no connection needed
# make demo    build the demo database, train, test, compare with a ridge baseline, draw    beyond the packages)
# make test    the fast test suite
# make lint    style, types, and which module imports which

PYTHON ?= python3
RUN := .venv/bin/python
SMART_IQA := .venv/bin/smart-iqa

.PHONY: install demo demo-swin demo-database test test-slow lint clean

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
	$(RUN) -m pytest -m "not slow" -n auto

test-slow: .venv/.installed-dev
	$(RUN) -m pytest

lint: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	rm -rf build/house
	for file in *.py; do mkdir -p build/house/$${file%.py} && cp $$file build/house/$${file%.py}/__init__.py; done
	cd build/house && PYTHONPATH=$(CURDIR) $(CURDIR)/.venv/bin/lint-imports --no-cache ../../pyproject.toml

.venv/.installed: requirements.txt pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv results/demo results/demo_swin datasets/demo
