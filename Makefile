# Each target sets up what it needs: `make run` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

# The tests run as two processes of one thread each; `make quick` runs those that take moments.
SECOND := tests/multitask tests/course tests/test_bad_input.py
QUICK := tests/bert/test_inputs.py tests/bert/test_tokenizer.py tests/bert/test_tour.py \
	tests/lora/test_lora_layers.py tests/laser/test_shared_prefix.py \
	tests/pruning/test_selection.py tests/compression tests/early_exit/test_exits.py \
	tests/early_exit/test_netcut.py \
	tests/multitask/test_pcgrad.py tests/multitask/test_standard_errors.py

.PHONY: run test first-half second-half quick test-long lint course bench

run: .venv/ready
	$(BIN)/python train_multitask.py --out runs/tiny --overwrite

test: .venv/ready
	@echo "some minutes; each half prints its results when it ends"
	@$(MAKE) -j2 -k --output-sync=target first-half second-half

first-half second-half: export OMP_NUM_THREADS = 1
first-half: .venv/ready
	$(BIN)/python -m pytest -q $(SECOND:%=--ignore=%)
second-half: .venv/ready
	$(BIN)/python -m pytest -q $(SECOND)

quick: .venv/ready
	$(BIN)/python -m pytest -q $(QUICK)

test-long: .venv/ready                       # what is too long for every day: minutes
	$(BIN)/python -m pytest -q -m long

lint: .venv/ready
	$(BIN)/ruff check .

course: .venv/ready                          # every known mistake and variant, graded by workers
	$(BIN)/python tests/course/matrix.py

bench: .venv/ready                           # beside transformers and peft: 14 minutes
	$(BIN)/pip install -q -r benchmarks/requirements.txt
	$(BIN)/python benchmarks/speed.py

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -r requirements.txt
	touch $@
