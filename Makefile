# `make demo` and `make test` are all a newcomer needs; both make .venv first. CONTRIBUTING.md tells of the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions that CI runs on; on another Python pip chooses. `make CONSTRAINTS= test` takes the newest of everything.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("--constraint requirements/ci.txt" * (sys.version_info[:2] == (3, 11)))')
FAST := not slow and not two_process and not real_data and not peer and not browser
SITE_PACKAGES = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

.PHONY: demo test test-fast test-lowest test-peer coverage bench lint lock release-check install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing (torch alone is several gigabytes the first time) ..."
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements/ci.txt
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[test,onnx,openvino]'
	touch $@

demo: install
	$(BIN)/accelerate launch --quiet train_kd.py --config configs/demo.yaml

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "$(FAST)"

coverage: $(VENV)/.installed-test
	mkdir -p .coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "$(FAST)" --cov --cov-report=term-missing:skip-covered
	for part in distillation data evaluation; do \
		printf "hf_kdmri/$$part, %%: " && $(BIN)/coverage report --include "hf_kdmri/$$part/*" --fail-under 95 --format total || exit 1; \
	done

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quick.py

# Transformers' common tests are in its source distribution, not in what pip installs.
test-peer: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet parameterized
	version=$$($(BIN)/python -c 'import transformers; print(transformers.__version__)') && mkdir -p build/peer && \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest build/peer transformers==$$version && \
	tar -xzf build/peer/transformers-$$version.tar.gz -C build/peer && \
	OMP_NUM_THREADS=1 KDMRI_TRANSFORMERS_TESTS=$$PWD/build/peer/transformers-$$version/tests \
		$(BIN)/python -m pytest -n 2 tests/test_peer_models.py

# The oldest versions that pyproject.toml allows; several gigabytes in an environment of their own.
test-lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[test,onnx,openvino]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 -m "$(FAST)"

# Keeps the versions that are installed; to take newer ones, upgrade them in .venv first.
lock: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet uv
	mkdir -p build && $(BIN)/python -m pip freeze --exclude-editable > build/installed.txt
	(echo "# What CI installs on Python 3.11; written by \`make lock\`." && $(BIN)/uv pip compile pyproject.toml --quiet \
		--all-extras --python-version 3.11 --constraint build/installed.txt --no-header --no-annotate) > build/ci.txt
	mv build/ci.txt requirements/ci.txt

release-check: $(VENV)/.installed-test
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet build twine cffconvert
	PATH=$$PWD/.venv-release/bin:$$PATH .venv-release/bin/python .ci/release_check.py --site-packages $(SITE_PACKAGES)

clean:
	rm -rf $(VENV) .venv-lowest .venv-release build dist *.egg-info .coverage runs
