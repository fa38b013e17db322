# Needs make and Python 3.10 to 3.13; everything else goes into .venv. `make help` lists the targets.

VENV := .venv
PY := $(VENV)/bin/python
# The first that runs, is 3.10 to 3.13 and has venv and ensurepip makes the environment; PYTHON=/path/to/python overrides.
PYTHON_CANDIDATES := python3.12 python3.11 python3.13 python3.10 python3 python
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check

# One thread per test process: two processes that each use both cores are slower than either.
PYTEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest --timeout 600 -n $(PYTEST_WORKERS)

.PHONY: help demo test test-fast test-all lint format bench clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## images from examples/shapes into result/ (offline, on a CPU)
	HF_HUB_OFFLINE=1 $(PY) infer.py --pretrained_model_name_or_path examples/shapes/model \
		--lora_ckpt_path examples/shapes/lora --seg_mask_path examples/shapes/masks \
		--output_path result --num_inference_steps 20 --save_panels
	@echo "Done. Look at the images in $(CURDIR)/result: each panel shows contour, masks and image side by side."

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test-fast: lint ## lint and the quick tests: no processes, no training; a minute
	$(PYTEST) -m "not slow and not long" $(ARGS)

test: lint ## lint and the tests, without those that take minutes each
	$(PYTEST) -m "not long" $(ARGS)

test-all: lint ## lint and every test
	$(PYTEST) $(ARGS)

format: $(VENV)/.installed-dev ## let ruff rewrite the files
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(VENV)/.installed ## quality on unseen shapes scenes, and speed beside plain FLUX; quick look: make bench ARGS="--limit 8"
	HF_HUB_OFFLINE=1 $(PY) -m seg2any.evaluation.shapes $(ARGS)
	HF_HUB_OFFLINE=1 $(PY) -m benchmarks.step

clean: ## caches and build leftovers; keeps .venv and result/
	rm -rf build dist seg2any.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PY) -c 'import pip; $(SUITABLE)' 2>/dev/null || { \
		for candidate in $(or $(PYTHON),$(PYTHON_CANDIDATES)); do \
			if "$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
		done; \
		if [ -z "$$chosen" ]; then \
			echo "No suitable Python among: $(or $(PYTHON),$(PYTHON_CANDIDATES))." >&2; \
			echo "Install Python 3.10, 3.11, 3.12 or 3.13 with its venv module, or name one: make demo PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$("$$chosen" --version)"; \
		"$$chosen" -m venv --clear $(VENV); \
	}
	$(PIP_INSTALL) -r requirements.txt
	$(PIP_INSTALL) --no-deps -e .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-train.txt $(VENV)/.installed
	$(PIP_INSTALL) -r requirements-dev.txt
	$(PIP_INSTALL) "setuptools>=77" wheel
	DS_BUILD_OPS=0 $(PIP_INSTALL) --no-build-isolation -r requirements-train.txt
	@touch $@
