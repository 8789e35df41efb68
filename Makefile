# make demo   on any machine with Python >= 3.10; `make` alone lists the targets.
# An existing environment can be used instead of .venv: make demo PYTHON=/path/to/python

BASE_PYTHON ?= python3
ifeq ($(origin PYTHON),command line)
READY :=
else
PYTHON := .venv/bin/python
READY := .venv/.ready
endif

# What another active environment may have set must not reach ours.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX TRITON_INTERPRET VAE_FAST_BACKEND

# One thread: at these sizes more gain nothing, and on a busy machine they wait for each other.
export OMP_NUM_THREADS := 1
PYTEST = $(PYTHON) -m pytest -q
TORCH ?= 2.11.0

# The other projects want Python 3.11.
ifeq ($(shell $(BASE_PYTHON) -c "import sys; print(sys.version_info >= (3, 11))"),True)
PEERS := test-peers
endif
CHECKS := lint test-cpu $(PEERS)
ifeq ($(shell uname -s),Linux)
# The longest first: two at a time, they end together.
CHECKS := lint test-interpreter test-cpu test-interpreter-3.6 test-launcher test-compile-3.6 $(PEERS)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-peers test-torch audit bench bench-peers clean $(CHECKS)

help:  ## list the targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 26

demo: $(READY)  ## train a VAE on 1,797 real handwritten digits; writes runs/digits
	$(PYTHON) -m vae_fast train

# Two at a time, each printed when it is done: every one is a single thread.
test:  ## every check below
	@echo "$(CHECKS): two at a time, each is printed when it is done"
	@$(MAKE) --no-print-directory --keep-going -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) $(CHECKS)

lint: $(READY)  ## style and format
	@echo "== lint and format"
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test-cpu: $(READY)  ## the CPU path, and each kernel compiled for sm_90 and gfx942
	@echo "== the CPU path, and each kernel compiled for sm_90 and gfx942"
	$(PYTEST)

test-interpreter: $(READY)  ## the kernels in Triton's interpreter
	@echo "== the kernels in Triton's interpreter"
	TRITON_INTERPRET=1 $(PYTEST)

test-interpreter-3.6: .venv/triton36/.ready  ## the kernels' own tests on triton 3.6.0, torch 2.11's pair
	@echo "== the kernels in the interpreter of triton 3.6.0"
	TRITON_INTERPRET=1 PYTHONPATH=.venv/triton36 $(PYTEST) tests/kernels

test-compile-3.6: .venv/triton36/.ready  ## each kernel compiled by triton 3.6.0, which refuses what its interpreter takes
	@echo "== each kernel compiled by triton 3.6.0"
	PYTHONPATH=.venv/triton36 $(PYTEST) -m compiled_only tests/kernels tests/benchmarks

LAUNCHED := $(addprefix tests/kernels/,test_launching.py test_plans.py test_sums.py test_determinism.py)
test-launcher: .venv/triton36/.ready  ## compiled kernels, run by NumPy under Triton's own launcher: of both versions
	@echo "== Triton's own launcher, above a CUDA driver that is played"
	$(PYTEST) -p tests.kernels.played_driver $(LAUNCHED)
	@echo "== and that of triton 3.6.0, which is another"
	PYTHONPATH=.venv/triton36 $(PYTEST) -p tests.kernels.played_driver tests/kernels/test_launching.py

test-torch: .venv/torch-$(TORCH)/.ready  ## most of them on PyTorch 2.11, or TORCH=2.15.0 (Python >= 3.11); not in `test`: GBs
	@echo "== the CPU path on torch $(TORCH)"
	PYTHONPATH=.venv/torch-$(TORCH) $(PYTEST)
	@echo "== the kernels in the interpreter, on torch $(TORCH)"
	TRITON_INTERPRET=1 PYTHONPATH=.venv/torch-$(TORCH) $(PYTEST)
	@echo "== Triton's own launcher, of its version"
	PYTHONPATH=.venv/torch-$(TORCH) $(PYTEST) -p tests.kernels.played_driver $(LAUNCHED)

test-peers: .venv/peers/.ready  ## vae_fast.integrations against the projects that it patches (Python >= 3.11)
	@echo "== diffusers, pythae and scvi-tools, patched and not"
	.venv/peers/bin/python -m pytest -q tests/peers
	@echo "== Oobleck's posterior in the interpreter: only kernels sample it"
	TRITON_INTERPRET=1 .venv/peers/bin/python -m pytest -q tests/peers/test_oobleck.py

# Torch comes first, alone: nothing that depends on it can then choose another build.
.venv/.ready: pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c "import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f'$(BASE_PYTHON) is Python {v[0]}.{v[1]}: 3.10 or newer is needed (make BASE_PYTHON=...)')"
	test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt torch==2.13.0 setuptools
	.venv/bin/python -m pip install -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

.venv/triton36/.ready: $(READY) constraints.txt
	$(PYTHON) -m pip install --no-deps --upgrade --target .venv/triton36 triton==3.6.0
	@touch $@

# With the version of Triton that goes with it.
.venv/torch-$(TORCH)/.ready: $(READY)
	$(PYTHON) -m pip install --upgrade --target .venv/torch-$(TORCH) torch==$(TORCH)
	@touch $@

# Their own environment: they bring a hundred packages. The imports fail here if one is missing, as its tests would skip.
# pythae without its dependencies: it asks for `dataclasses`, which Python has had since 3.7. The rest it needs is named.
.venv/peers/.ready: constraints.txt constraints-peers.txt
	@$(BASE_PYTHON) -c "import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f'$(BASE_PYTHON) is Python {v[0]}.{v[1]}: the other projects want 3.11 or newer (make BASE_PYTHON=...)')"
	test -x .venv/peers/bin/python || $(BASE_PYTHON) -m venv .venv/peers
	.venv/peers/bin/python -m pip install -c constraints-peers.txt torch==2.13.0 setuptools
	.venv/peers/bin/python -m pip install -c constraints-peers.txt diffusers scvi-tools imageio pydantic pytest pytest-timeout typer "triton; platform_system == 'Linux'"
	.venv/peers/bin/python -m pip install -c constraints-peers.txt --no-deps pythae
	.venv/peers/bin/python -c "import diffusers, pythae.models, scvi"
	@touch $@

audit: $(READY)  ## the machine code of every kernel for four GPUs, against the number written beside it
	$(PYTHON) -m vae_fast audit

bench: $(READY)  ## speed against eager PyTorch and torch.compile, into benchmarks/results (QUICK=1: two minutes)
	$(PYTHON) -m vae_fast bench $(if $(QUICK),--quick)

bench-peers: .venv/peers/.ready  ## training steps of scvi-tools and diffusers, patched and not, into the same folder
	.venv/peers/bin/python -m vae_fast bench --case step_scvi --case step_diffusers

clean:  ## remove the environment, builds and caches (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
