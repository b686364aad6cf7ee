# The commands of this project. Each sets up what it needs: a virtual environment in .venv, and, as root on Debian,
# the packages that tests of the kernel use.

# The interpreter for .venv, 3.11 or newer: make run PYTHON=/usr/bin/python3
PYTHON ?= python3
# Added to the command: make test ARGS='-k affinity', make run ARGS='--members 8'
ARGS ?=

VENV_PYTHON := .venv/bin/python
FOR_RUN := .venv/.installed
FOR_BENCH := .venv/.installed-bench
FOR_TEST := .venv/.installed-dev
# What is compiled at installation, where there is a compiler.
COMPILED := pyproject.toml setup.py $(wildcard aiolb/*/*.pyx aiolb/*/*.pxd)
KERNEL_TEST_PACKAGES := python3-bpfcc bpftool iproute2

# Tests start a thousand processes: each is spared 50 ms when bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test lint bench chaos bytecode docs reference picture wheel docker-test

help:
	@echo "make run          the demo: members, a flood, and a table of who got what"
	@echo "make test         all tests"
	@echo "make lint         ruff and mypy"
	@echo "make bench        the benchmarks, and docs/performance.md with its plots from what they find"
	@echo "make chaos        restarts, deaths and stalls under load: what becomes of every datagram; as root, 25 minutes"
	@echo "make docker-test  the images and the compose file in a Docker engine of their own; as root, about 5 minutes"
	@echo "make bytecode     compile aiolb/bpf/balancer.c to balancer.bin with bcc"
	@echo "make docs         the documentation as a site, in site/"
	@echo "make reference    docs/reference/cli.md and the manual in man/, from the commands' own help; the table of metrics"
	@echo "make picture      docs/demo.svg and docs/top.svg, from what the demo and top show; as root"
	@echo "make wheel        a wheel in dist/, installed elsewhere and tested there"

run: $(FOR_RUN)
	@$(VENV_PYTHON) -m aiolb demo $(ARGS)

test: $(FOR_TEST)
	@tools/debian-packages $(KERNEL_TEST_PACKAGES) || echo "aiolb: tests that need them skip, or fail where CI=true" >&2
	@$(VENV_PYTHON) -m pytest --numprocesses auto --dist worksteal $(ARGS)

lint: $(FOR_TEST)
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m mypy

bench: $(FOR_BENCH)
	@$(VENV_PYTHON) benchmarks/receive.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/shares.py
	@$(VENV_PYTHON) benchmarks/send.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/echo.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/steering.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/startup.py $(ARGS)
	@$(VENV_PYTHON) benchmarks/plots.py

chaos: $(FOR_TEST)
	@$(VENV_PYTHON) -m chaos $(ARGS)

docker-test: $(FOR_TEST)
	@tools/debian-packages ca-certificates debian-archive-keyring iproute2 mmdebstrap
	@$(VENV_PYTHON) -m pytest docker/tests $(ARGS)

bytecode: $(FOR_RUN)
	@tools/debian-packages python3-bpfcc || true
	$(VENV_PYTHON) -m aiolb.bpf.compiler

docs: $(FOR_TEST)
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict $(ARGS)

reference: $(FOR_TEST)
	@$(VENV_PYTHON) tools/reference.py
	@$(VENV_PYTHON) tools/metrics_table.py

picture: $(FOR_TEST)
	@$(VENV_PYTHON) tools/picture.py

wheel: $(FOR_TEST)
	@tools/test-wheel $(ARGS)

$(FOR_RUN): $(COMPILED)
	@PYTHON='$(PYTHON)' tools/setup .
	@touch $@

$(FOR_BENCH): $(COMPILED)
	@PYTHON='$(PYTHON)' tools/setup '.[bench]'
	@touch $@ $(FOR_RUN)

$(FOR_TEST): $(COMPILED)
	@PYTHON='$(PYTHON)' tools/setup '.[dev]'
	@touch $@ $(FOR_RUN)
