# One command does each thing on a fresh Debian 12 or 13: every target installs what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: dev apt types check test test-slow soak test-mpi test-rdma test-rdma-short rdma-vm native ad-nacre bench bench-native bench-peers scale demo clean fuzz

# Packages go into the current Python environment. Debian's own Python refuses that (PEP 668), so there, and only there,
# a .venv in the checkout is made and used.
BASE_PYTHON ?= python3
MANAGED := $(shell $(BASE_PYTHON) -c "import pathlib, sys, sysconfig as c; print('yes' if sys.prefix == sys.base_prefix \
    and pathlib.Path(c.get_path('stdlib'), 'EXTERNALLY-MANAGED').exists() else '')" 2>/dev/null || echo yes)
ifeq ($(MANAGED),yes)
PYTHON := $(CURDIR)/.venv/bin/python
else
PYTHON := $(shell command -v $(BASE_PYTHON))
endif
BIN := $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('scripts'))" 2>/dev/null || echo $(CURDIR)/.venv/bin)
# The installation is redone when pyproject.toml changes, and when the environment has none or another checkout's.
STAMP := build/dev$(subst /,-,$(BIN))
INSTALLED := $(shell cd / && $(PYTHON) -c "import nacrefs.common as c; print(c.__path__[0])" 2>/dev/null)
ifneq ($(INSTALLED),$(CURDIR)/common)
.PHONY: $(STAMP)
endif

APT := fuse3 postgresql acl attr rsync gcc libc6-dev libxxhash-dev mpich libmpich-dev
APT_FILES := /usr/bin/fusermount3 /usr/lib/postgresql/*/bin/initdb /usr/bin/setfacl /usr/bin/setfattr /usr/bin/rsync\
    /usr/bin/gcc /usr/include/xxhash.h /usr/bin/mpicc.mpich
ifeq ($(MANAGED),yes)
APT += python3-venv
APT_FILES += /usr/lib/python3*/ensurepip/__init__.py
endif

dev: $(STAMP)

apt:
	@for file in $(APT_FILES); do \
	    if [ -e "$$file" ]; then continue; fi; \
	    if [ "$$(id -u)" != 0 ]; then \
	        echo "$$file is missing, and some targets need it. As root: apt-get install -y $(APT)" >&2; break; \
	    fi; \
	    apt-get update -q; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT); \
	    break; \
	done

$(STAMP): pyproject.toml | apt
	if [ "$(MANAGED)" = yes ] && [ ! -x $(PYTHON) ]; then $(BASE_PYTHON) -m venv .venv; fi
	$(PYTHON) -m pip install -q --disable-pip-version-check --root-user-action=ignore -e '.[dev]'
	# mount(8) looks for helpers in /sbin only.
	if [ "$$(id -u)" = 0 ]; then ln -sfn $(BIN)/mount.nacre /sbin/mount.nacre; fi
	mkdir -p build && touch $@

# What the type checkers and import-linter read: nacrefs/<folder> as links, because no folder is called nacrefs.
types:
	@mkdir -p build/types/nacrefs
	@for folder in client common conf mds oss; do ln -sfn ../../../$$folder build/types/nacrefs/$$folder; done

check: dev types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pyright --warnings
	PYTHONPATH=build/types $(BIN)/lint-imports

test: dev
	$(PYTHON) -m pytest -m "not slow" --ignore=tests/bench

# Hostile bytes at every decoder and at live servers, each test for SECONDS. A failure names its FUZZ_SEED.
SECONDS ?= 60
fuzz: dev
	FUZZ_SECONDS=$(SECONDS) $(PYTHON) -m pytest tests/fuzz --timeout=0

test-slow: dev
	$(PYTHON) -m pytest -m slow --ignore=tests/bench --timeout=1800

# Programs race on two mounts while servers and mounts are killed; then everything is compared and checked.
MINUTES ?= 10
soak: dev
	PATH="$(BIN):$$PATH" $(PYTHON) -m tests.faults.soak --minutes $(MINUTES)

# The native library (client/native), for use from this checkout.
native: apt
	$(MAKE) --no-print-directory -s -C client/native

# MPI-IO on every MPI that Debian and PyPI have; `make test` runs a short form on MPICH. docs/mpi.md
APT_MPI := openmpi-bin libopenmpi-dev gfortran python3-mpi4py python3-h5py-mpi libpnetcdf-dev pnetcdf-bin
test-mpi: dev native
	@if [ ! -e /usr/include/pnetcdf.h ] || [ ! -e /usr/bin/mpif90.openmpi ]; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT_MPI); fi
	@for mpi in mpich openmpi; do \
	    [ -x build/mpi/$$mpi/bin/mpirun ] || { $(PYTHON) -m venv build/mpi/$$mpi && \
	    build/mpi/$$mpi/bin/pip install -q --disable-pip-version-check $$mpi mpi4py numpy; }; done
	@[ -d build/mpi/mpi4py ] || { mkdir -p build/mpi/source && cd build/mpi/source && \
	    $(PYTHON) -m pip download -q --no-deps --no-binary :all: mpi4py && tar xzf mpi4py-*.tar.gz && \
	    mv mpi4py-*/ ../mpi4py; }
	$(PYTHON) -m pytest tests/mpi --timeout=1800

# With a real RDMA device: Soft-RoCE in a VM (tests/rdma/rdma-vm, docs/rdma.md). `make test-rdma-short` is CI's.
APT_RDMA := qemu-system-x86 busybox-static cpio kmod iproute2 ibverbs-providers e2fsprogs
RDMA_SHORT := tests/rdma -m "not slow" -k "filesystem or found or send_each_way or \
    one_write or many_buffers or wrong_key or cancelled_read_belongs or either_side"
rdma-vm: dev types
	@for tool in qemu-system-x86_64 busybox cpio depmod rdma mkfs.ext4; do \
	    if PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null; then continue; fi; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT_RDMA); break; done

test-rdma: rdma-vm
	RDMA_VM_TIMEOUT=5400 tests/rdma/rdma-vm tests/rdma/run $(PYTHON) tests/rdma

test-rdma-short: rdma-vm
	RDMA_VM_TIMEOUT=1500 tests/rdma/rdma-vm tests/rdma/run $(PYTHON) $(RDMA_SHORT)

# The ROMIO driver, compiled into an MPICH from Debian's source (docs/mpi.md); not part of any other target.
ad-nacre: native
	sh client/native/build_mpich.sh build/mpich

bench: dev
	$(PYTHON) -m pytest tests/bench --benchmark-only --timeout=1800

bench-native: dev native
	PATH="$(BIN):$$PATH" PYTHONPATH=. $(PYTHON) tests/bench/native_io.py

bench-peers: dev
	$(PYTHON) tests/bench/peers.py

scale: dev
	$(PYTHON) tests/bench/scale.py

demo: dev
	PATH="$(BIN):$$PATH" sh conf/demo.sh

clean:
	rm -rf build dist .venv *.egg-info .benchmarks .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
