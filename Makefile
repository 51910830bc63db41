# make run    the whole pipeline on scikit-learn's digits: minutes on two cores
# make test   everything that is checked, but what needs daemons:
# make test-cluster   the pipeline on a SLURM of one node, started and stopped here: Debian, root
# All first make .venv with the pinned dependencies and this package; a second call installs nothing.

PYTHON ?= python3
VENV ?= .venv
CORES ?= all
# test processes, one thread each
JOBS ?= 2
TARGET ?= results/digits_wrn162_wrn161.json

BIN := $(VENV)/bin
READY := $(VENV)/.installed
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: run test browser chaos test-cluster slurm bench schema audit clean

run: $(READY)
	$(BIN)/snakemake --cores $(CORES) $(TARGET)
	$(BIN)/dfkd show $(TARGET)

test: export OMP_NUM_THREADS = 1
test: $(READY) $(if $(shell command -v chromium),,browser)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests of the viewer drive a real Chromium: the distribution's, not one that playwright would download.
browser:
	{ apt-get -qq update && apt-get -qqy install --no-install-recommends chromium fonts-dejavu-core; } \
		|| { echo "dfkd: the tests of the viewer need chromium: install your distribution's package"; exit 1; }

# The digits workflow, killed at random moments a hundred times and started again: three quarters of an hour. docs/reliability.md
chaos: export OMP_NUM_THREADS = 1
chaos: $(READY)
	$(BIN)/python tests/chaos/chaos.py --seeds 100 --output docs/chaos.md

# Jobs that are killed, run out of time or memory and lose their node; artefacts in S3 meanwhile, since SLURM's jobs mostly wait.
# The list of jobs: test-artefacts/slurm_jobs.md.
test-cluster: export OMP_NUM_THREADS = 1
test-cluster: $(READY) slurm
	$(BIN)/pytest -n 2 --dist loadfile tests/cluster

slurm: $(READY)
	@if [ "$$(id -u)" = 0 ] && ! command -v slurmctld > /dev/null && command -v apt-get > /dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends slurm-wlm munge; fi
	@$(BIN)/python tests/cluster/slurm.py

bench: $(READY)
	$(BIN)/python -m benchmarks

# The JSON Schemas of the config and of a campaign, after a change of the typed settings.
schema: $(READY)
	$(BIN)/python -m dfkd.schema config > workflow/schemas/config.schema.json
	$(BIN)/python -m dfkd.schema campaign > workflow/schemas/campaign.schema.json

# Known weaknesses of everything that is installed in .venv, by pip-audit from an environment of its own; asks PyPI's advisories.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --skip-editable

# Most of what the libraries ship is never imported: of their bytecode only what the stages use is compiled, by importing it.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("dfkd: python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --editable .
	$(BIN)/python -c 'import snakemake.cli, sklearn.datasets, sklearn.manifold, dfkd.evaluation.pictures, dfkd.diffusion.augment, dfkd.distillation.distill'
	$(BIN)/python -c 'from diffusers import DDIMScheduler, UNet2DModel'
	touch $@

# What was built from the sources. Data, results and downloads stay: remove those by hand.
clean:
	rm -rf $(VENV) $(VENV)-audit .mypy_cache .ruff_cache .pytest_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
