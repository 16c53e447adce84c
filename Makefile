# Two commands do everything on a fresh machine with Python 3.10+ and a C compiler:
#   make chat   talk to the bundled model
#   make test   run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find native -name '*.[ch]' -o -name 'CMakeLists.txt')

HELP := "If numba or llvmlite is what failed: README.md (Without Numba) says what to do, on Alpine for example."

.PHONY: chat test lint header ptx page agents clean

chat: $(VENV)/.installed
	@$(BIN)/edgemoe chat

# Three at a time for two processors: one in five of their seconds is a wait, for a disk, a process or a server.
test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -n 3 --dist worksteal

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The C side of the operations that edgemoe/kernels/operations.py defines; a test holds the committed file to them.
header: $(VENV)/.installed
	@$(BIN)/python native/write_header.py

# The device's text, compiled for NVIDIA's cards (needs nvcc, which an installation does not); a test holds it to the text.
ptx: $(VENV)/.installed
	@$(BIN)/python -m edgemoe.kernels.device.ptx

# The files of the page that edgemoe serve sends, from its sources (needs node and npm, which an installation does not).
page:
	@cd edgemoe/server/page && npm ci --ignore-scripts --no-audit --no-fund --silent && npm run --silent check && \
		npm run --silent build

# The coding agents that tests of the server let work, at the versions of the lock file (needs npm). 400 MB are fetched in
# 15 to 40 seconds, and take 1 GB.
agents: build/agents/.installed

build/agents/.installed: tests/server/agents/package-lock.json
	@mkdir -p build/agents && cp tests/server/agents/package.json tests/server/agents/package-lock.json build/agents
	@cd build/agents && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(NATIVE_SOURCES)
	@echo "Installing edgemoe into $(VENV) (the first time takes a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . || { echo $(HELP); exit 1; }
	@touch $@

# The packages of an extra, as the installed edgemoe lists them: to install edgemoe with it would compile all once more.
define INSTALL_EXTRA
@$(BIN)/python -c 'import importlib.metadata as m, sys; print(*(r.split(";")[0] for r in m.requires("edgemoe") \
	if r.endswith("\"%s\"" % sys.argv[1])), sep="\n")' $(1) | \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement /dev/stdin
@touch $@
endef

$(VENV)/.installed-test: $(VENV)/.installed
	$(call INSTALL_EXTRA,test)

$(VENV)/.installed-lint: $(VENV)/.installed-test
	$(call INSTALL_EXTRA,lint)

# With torch and transformers, for live parity.
$(VENV)/.installed-oracle: $(VENV)/.installed-test
	$(call INSTALL_EXTRA,oracle)

# With OpenCL, and a driver of it that runs on any processor.
$(VENV)/.installed-pocl: $(VENV)/.installed-test
	$(call INSTALL_EXTRA,pocl)

# With the clients of the server that tests use.
$(VENV)/.installed-clients: $(VENV)/.installed-test
	$(call INSTALL_EXTRA,clients)

clean:
	rm -rf $(VENV) build dist
