# Two commands do everything on a fresh machine with git, make and python3 >= 3.11:
#   make demo     open the screen on the built-in model
#   make test     every check and every test
#   make nightly  all that, and every architecture of transformers
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test check kills coverage-table nightly confusion false-alarms bench gpu tools clean

demo: $(READY)
	@$(BIN)/kvtrace

test: check

check: $(READY) tools
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

# More SIGKILLs of a writer than the tests take time for.
kills: $(READY)
	KVTRACE_KILLS=300 $(BIN)/python -m pytest tests/files/test_writing.py

# Every causal-LM type of transformers, recorded and verified; goes on where it was interrupted.
coverage-table: $(READY)
	cd tests && ../$(BIN)/python -m sweep.run --output ../docs/coverage.md

nightly: check
	cd tests && ../$(BIN)/python -m sweep.run --fresh --output ../docs/coverage.md --at-least 178

# Every bug of the zoo in ten variants, edits of real code, every healthy model: docs/confusion.md.
confusion: $(READY)
	cd tests && ../$(BIN)/python -m confusion.run --fresh

false-alarms: $(READY)
	cd tests && ../$(BIN)/python -m confusion.run --only healthy

# The ways of generating and every architecture once more, on a GPU. What it is never asked for is
# a position out of range: that is the end of every CUDA program.
gpu: $(READY)
	KVTRACE_TEST_DEVICE=cuda $(BIN)/python -m pytest -W ignore::DeprecationWarning \
		-W ignore:TensorFloat32 -W "ignore:The CUDA Graph is empty" \
		-k "not full_context" tests/record/test_generation_ways.py tests/record/paged
	cd tests && KVTRACE_TEST_DEVICE=cuda ../$(BIN)/python -m sweep.run --fresh --at-least 178

bench: $(READY)
	$(BIN)/python tests/benchmarks/run.py

# The terminal tests drive a real tmux.
tools:
	@command -v tmux >/dev/null || sh .ci/install-tools

$(READY): pyproject.toml constraints.txt
	$(PYTHON) .ci/make_venv.py $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
