# make demo | test | lint | docs | package | peers | proto | bench | clean
# Each prepares .venv by itself; PYTHON picks the interpreter it is made with.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# twistd finds a plugin faster, and without write access later, when Twisted's cache knows it.
PLUGINS := $(BIN)/python -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
RUNTIME := .venv/.runtime
DEV := .venv/.dev
# Twisted's names for links in our documentation, taken from the installed Twisted: no network needed.
INVENTORY := build/inventory/objects.inv
NODE_MODULES := build/peers/node_modules/.package-lock.json
CORE := condition entries envelopes errors lanes loopback mcs/* messages payload registrations retry session validation window

comma := ,
empty :=
space := $(empty) $(empty)

.DELETE_ON_ERROR:
.PHONY: demo test lint docs package peers proto bench clean

demo: $(RUNTIME)
	@$(BIN)/twistd -n --pidfile= --logfile=demo.log fcm-xmpp --embedded --demo

test: $(DEV)
	@$(BIN)/pytest -q -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered
	@echo 'Core, which has to be at 100 %:'
	@$(BIN)/coverage report --fail-under=100 \
		--include='$(subst $(space),$(comma),$(CORE:%=fcmxmpp/%.py))'

lint: $(DEV)
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy fcmxmpp $(wildcard tests/typing)
	@$(BIN)/lint-imports --no-logo

docs: $(DEV) $(INVENTORY)
	@$(BIN)/pydoctor --quiet --intersphinx-file=$(INVENTORY)::https://docs.twisted.org/en/stable/api/
	@echo 'API documentation: build/apidocs/index.html'

package: $(DEV)
	@.ci/package

# Other people's clients, for tests/test_device_peers.py, which leaves out what is not there.
peers: $(NODE_MODULES)

# What devices speak, compiled; committed, so that nobody else needs a compiler.
proto: $(DEV)
	@mkdir -p build/proto
	@$(BIN)/python -m grpc_tools.protoc -I fcmxmpp/mcs --descriptor_set_out=fcmxmpp/mcs/wire.binpb \
		--pyi_out=build/proto fcmxmpp/mcs/wire.proto
	@{ echo '# mypy: disable-error-code="type-arg,no-untyped-def"'; cat build/proto/wire_pb2.pyi; } >fcmxmpp/mcs/wire.pyi

# For development, because slixmpp is one of those that are compared. Needs Linux, gcc and OpenSSL's headers as
# well, and says so; without Node.js one of the others is left out.
bench: $(DEV)
	@$(BIN)/python benchmarks/bench.py

clean:
	@rm -rf build dist *.egg-info .coverage .coverage.* .hypothesis _trial_temp* demo.log
	@rm -rf .import_linter_cache .mypy_cache .pytest_cache .ruff_cache twisted/plugins/dropin.cache
	@find fcmxmpp tests twisted -name __pycache__ -prune -exec rm -rf {} +

# Depended on by its file, not by bin/python, whose date is that of the system's interpreter.
.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
		sys.exit("fcmxmpp needs Python 3.10 or newer, this is %d.%d; name one: make PYTHON=python3.x" % v[:2] \
		if v < (3, 10) else 0)'
	@$(PYTHON) -m venv .venv

# Only what running needs, for those who came to see the demo.
$(RUNTIME): .venv/pyvenv.cfg setup.cfg pyproject.toml
	@echo 'Preparing .venv ...'
	@$(PIP) install -e .
	@$(PLUGINS)
	@touch $@

$(DEV): .venv/pyvenv.cfg setup.cfg pyproject.toml
	@echo 'Preparing .venv for development ...'
	@$(PIP) install -e '.[dev]'
	@$(PLUGINS)
	@touch $(RUNTIME) $@

# No script of a package is run: they would download what the tests do not need.
$(NODE_MODULES): tests/peers/package.json tests/peers/package-lock.json
	@mkdir -p build/peers && cp $^ build/peers/
	@cd build/peers && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# Run from build/ so that pydoctor does not take Twisted for us and read our setup.cfg.
$(INVENTORY): $(DEV)
	@echo 'Indexing Twisted, once (half a minute) ...'
	@mkdir -p $(@D)
	@twisted=$$($(BIN)/python -c 'import os, twisted; print(os.path.dirname(twisted.__file__))') && \
		cd build && ../$(BIN)/pydoctor -qq --make-intersphinx --html-output=inventory "$$twisted" >inventory/log 2>&1
