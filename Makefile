# Each target sets up what it needs: `make run` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-long lint course bench

run: .venv/ready
	$(BIN)/python train_multitask.py --out runs/tiny --overwrite

test: .venv/ready
	$(BIN)/python -m pytest -q

test-long: .venv/ready
	$(BIN)/python -m pytest -q -m long

lint: .venv/ready
	$(BIN)/ruff check .

course: .venv/ready                          # every known mistake and variant, graded by workers
	$(BIN)/python tests/course/matrix.py

bench: .venv/ready
	$(BIN)/pip install -q -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/speed.py

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@
