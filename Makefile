# `make demo` and `make test` are the two commands of the README; each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
DEMO := cifs-resnet10.at_digits

.PHONY: install demo test lint bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[all,test]'
	# torchattacks pins an old requests that it never imports
	$(BIN)/pip install --quiet --no-deps 'torchattacks>=3.5.1'
	@touch $@

demo: install
	OMP_WAIT_POLICY=ACTIVE $(BIN)/zoo evaluate $(DEMO) --out demo --plot \
	  --attack 'torchattacks:APGD(steps=10)' \
	  --attack 'torchattacks:Square(n_queries=50)' \
	  --attack 'art:AutoProjectedGradientDescent(max_iter=10, nb_random_init=1)'
	@echo "see demo/result.json and demo/accuracy.png"

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# ONLY=startup, loading, models, evaluation, autoattack, training or equality for one part; evaluation and
# equality take about 10 minutes each, autoattack 20
bench: install
	$(BIN)/python tests/bench.py $(ONLY)

clean:
	rm -rf .venv demo runs build dist .mypy_cache .ruff_cache
