# make demo    build the demo database, train, test, compare with a ridge baseline, draw   (no connection needed
# make test    the fast test suite                                                          beyond the packages)

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: demo demo-swin demo-database test test-slow lint clean

# A finished run is kept, a stopped one goes on. $(1) is the run's name.
define train
	@if [ -f results/$(1)/results.json ]; then echo "results/$(1) is complete; remove it to train again"; \
	elif [ -d results/$(1) ]; then $(RUN) train_swin.py --resume results/$(1); \
	else $(RUN) train_swin.py --config configs/$(1).yaml; fi
	$(RUN) ridge_baseline.py --checkpoint results/$(1)
	$(RUN) generate_paper_figures.py results/$(1) docs/network.json --output results/$(1)/figures
	$(RUN) report.py results/$(1)
endef

demo: .venv/.installed demo-database
	$(call train,demo)

demo-swin: .venv/.installed demo-database
	$(call train,demo_swin)

demo-database: .venv/.installed
	$(RUN) make_demo_database.py --output datasets/demo

test: .venv/.installed-dev
	$(RUN) -m pytest -m "not slow" -n auto

test-slow: .venv/.installed-dev
	$(RUN) -m pytest

lint: .venv/.installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv/.installed: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.installed-dev: .venv/.installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv results/demo results/demo_swin datasets/demo
