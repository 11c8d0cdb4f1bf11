# Each target sets up what it needs: `make run` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench

run: .venv/ready
	@test -n "$$PLAINBERT_WEIGHTS" -a -n "$$PLAINBERT_DATA" || { echo "make run needs \
	PLAINBERT_WEIGHTS (a checkpoint: a folder or a name on the hub) and PLAINBERT_DATA (a folder \
	with cs224n/ in it); see README.md"; exit 2; }
	$(BIN)/python train_multitask.py --bert "$$PLAINBERT_WEIGHTS" --data "$$PLAINBERT_DATA/cs224n" \
		--epochs 1 --out runs/first --overwrite

test: .venv/ready
	$(BIN)/python -m pytest -q

lint: .venv/ready
	$(BIN)/ruff check .

bench: .venv/ready
	$(BIN)/pip install -q -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/speed.py

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@
