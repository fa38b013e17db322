# This needs make and Python 3.10 to 3.13; everything else is installed into .venv. `make help` lists the targets.

VENV := .venv
PY := $(VENV)/bin/python
# The first suitable candidate creates the environment: 3.10 to 3.13, with venv and ensurepip. PYTHON=... overrides.
PYTHON_CANDIDATES := python3.12 python3.11 python3.13 python3.10 python3 python
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PIP_INSTALL := -m pip install --disable-pip-version-check
LOCKED := $(PIP_INSTALL) --no-deps --require-hashes
# An index with another build of torch, such as https://download.pytorch.org/whl/cpu; only torch is taken from it.
TORCH_INDEX ?=

# Make the environment $(1) by the first suitable Python, unless it is there.
define environment
	@$(1)/bin/python -c 'import pip; $(SUITABLE)' 2>/dev/null || { \
		for candidate in $(or $(PYTHON),$(PYTHON_CANDIDATES)); do \
			if "$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
		done; \
		if [ -z "$$chosen" ]; then \
			echo "No suitable Python was found among: $(or $(PYTHON),$(PYTHON_CANDIDATES))." >&2; \
			echo "Install Python 3.10, 3.11, 3.12 or 3.13 with its venv module, or give one: make demo PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(1) with $$("$$chosen" --version)"; \
		"$$chosen" -m venv --clear $(1); \
	}
endef

# One thread per test process: processes that each use all cores slow each other down.
PYTEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest --timeout 600 -n $(PYTEST_WORKERS)

# Locks hold for every Python and system. All but torch is in them: its build differs from machine to machine.
COMPILE = .venv-lock/bin/uv --no-config pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--annotation-style line --custom-compile-command "make lock" \
	--excludes locks/left_out.txt --no-emit-package torch $(ARGS)
RUN := requirements.txt requirements-build.txt

.PHONY: help demo test test-fast test-all test-processors lint format bench docs tables lock clean
.DEFAULT_GOAL := help

help: ## list all targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-23s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed ## make images from examples/shapes into result/ (offline, on a CPU)
	HF_HUB_OFFLINE=1 $(PY) infer.py --pretrained_model_name_or_path examples/shapes/model \
		--lora_ckpt_path examples/shapes/lora --seg_mask_path examples/shapes/masks \
		--output_path result --num_inference_steps 20 --save_panels
	@echo "Done. Look at the images in $(CURDIR)/result: each panel shows contour, masks and image side by side."

lint: $(VENV)/.installed-dev ## check rules and formatting with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test-fast: lint ## lint, then run the quick tests, about a minute: no training, short processes only
	$(PYTEST) -m "not slow and not long" $(ARGS)

test: lint ## lint, then run the tests, except those that take minutes each
	$(PYTEST) -m "not long" $(ARGS)

test-all: lint ## lint, then run every test
	$(PYTEST) $(ARGS)

test-processors: $(VENV)/.installed-dev ## try claims of equal numbers with older processors' kernels, idle and busy
	$(PY) -m tests.processors -n $(PYTEST_WORKERS) $(ARGS)

format: $(VENV)/.installed-dev ## fix rules and formatting with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(VENV)/.installed ## print the bars of quality and of speed; quality of fewer scenes: ARGS="--limit 8"
	HF_HUB_OFFLINE=1 $(PY) -m seg2any.evaluation.shapes $(ARGS)
	HF_HUB_OFFLINE=1 $(PY) -m benchmarks.step

docs: .venv-docs/.installed ## build the site of the documentation into site/; it reads without a network
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet
	@echo "Done. Open $(CURDIR)/site/index.html; for its search, start: $(PY) -m http.server -d site"

tables: $(VENV)/.installed-dev ## write the tables of README and docs/ that repeat the code
	$(PY) -m tests.pages

lock: .venv-lock/.installed ## write all packages' versions and hashes into locks/; newer ones: ARGS=--upgrade
	$(COMPILE) -o locks/run.txt $(RUN)
	$(COMPILE) -o locks/test.txt -c locks/run.txt $(RUN) requirements-dev.txt requirements-train.txt
	$(COMPILE) -o locks/ray.txt -c locks/run.txt $(RUN) requirements-ray.txt
	$(COMPILE) -o locks/docs.txt requirements-docs.txt
	$(COMPILE) -o locks/lock.txt requirements-lock.txt

clean: ## delete caches and build leftovers, but not .venv and result/
	rm -rf build dist site seg2any.egg-info examples/build examples/seg2any_demo.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: locks/run.txt constraints.txt requirements.txt pyproject.toml
	$(call environment,$(VENV))
	$(PY) $(LOCKED) -r locks/run.txt
	$(PY) $(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(PY) $(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: locks/test.txt $(VENV)/.installed
	DS_BUILD_OPS=0 $(PY) $(LOCKED) --no-build-isolation -r locks/test.txt
	@touch $@

.venv-docs/.installed: locks/docs.txt
	$(call environment,.venv-docs)
	.venv-docs/bin/python $(LOCKED) -r locks/docs.txt
	@touch $@

.venv-lock/.installed: locks/lock.txt
	$(call environment,.venv-lock)
	.venv-lock/bin/python $(LOCKED) -r locks/lock.txt
	@touch $@
