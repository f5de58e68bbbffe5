# Thin on purpose: the pipeline is dvc.yaml, the settings are params.yaml.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := PATH="$$PWD/.venv/bin:$$PATH" python

# One side of a first run: these stages alone, in this order, with a name on each line.
SIDE = $(RUN) -m dvc --wait-for-lock repro -s --glob $(2) 2>&1 | sed 's/^/$(1) | /'

.PHONY: repro test fuzz bench lint setup lock

repro: setup  ## run what is out of date of the pipeline and show the results
# One small network does not keep two cores busy, so a first run makes and attacks the models of both dense
# networks side by side. What that leaves is run after it, as every later run is, by dvc repro alone.
	@[ -e runs ] || { $(RUN) -m dvc repro prepare && { \
	  $(call SIDE,robust,'*@robust' 'model@*robust' 'attack@*robust' 'study@seeds*' study@protocol) & \
	  $(call SIDE,standard,'*@standard' 'model@*standard' 'attack@*standard' '*@seed1' study@sweep 'study@[cf]*'); \
	  wait; }; }
	@$(RUN) -m dvc repro
	@$(RUN) -m advprune leaderboard

test: setup  ## run the tests
	@$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

FUZZ ?= 90
fuzz: setup  ## hostile input at every border for FUZZ seconds each, damaged bytes, kills; counts of what is taken
	@ADVPRUNE_FUZZ=$(FUZZ) $(RUN) -m pytest -s tests/test_fuzz.py tests/test_fuzz_outside.py tests/test_kill.py

bench: setup  ## time the attack engine beside other packages
	@$(RUN) bench/attacks.py

lint: setup  ## check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

# Outside a git checkout (an unpacked archive) DVC has to be told that there is none.
setup: .venv/ready
	@if [ -e .git ]; then $(RUN) -m dvc config -q --local --unset core.no_scm 2>/dev/null || true; \
	else $(RUN) -m dvc config -q --local core.no_scm true; fi

.venv/ready: requirements.lock
	"$(PYTHON)" -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps --require-hashes -r requirements.lock
	$(RUN) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	$(RUN) -m compileall -q src stages
	@touch .venv/ready

lock:  ## after a version in requirements.lock was changed: the sha256 of all its files (needs uv)
	{ grep '^#' requirements.lock; grep '==' requirements.lock | tr -d '\\' | uv pip compile -q \
	--universal --no-deps --generate-hashes --no-annotate --no-header --python-version 3.11 -; \
	} > .venv/requirements.lock
	mv .venv/requirements.lock requirements.lock
