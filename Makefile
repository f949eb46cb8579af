# One command does each thing on a fresh Debian 12 or 13: every target installs what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: dev apt types check test test-slow soak test-mpi test-rdma test-rdma-short bench-rdma rdma-vm native ad-nacre bench bench-native bench-peers scale demo clean fuzz

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
	NACRE_EXPLORE=1 FUZZ_SECONDS=$(SECONDS) $(PYTHON) -m pytest tests/fuzz --timeout=0

# What takes minutes; Hypothesis looks for new examples here, where `make test` has the same each time.
test-slow: dev
	NACRE_EXPLORE=1 $(PYTHON) -m pytest -m slow --ignore=tests/bench --timeout=1800

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
	    $(PYTHON) -m pip download -q --no-deps --no-binary mpi4py mpi4py && tar xzf mpi4py-*.tar.gz && \
	    mv mpi4py-*/ ../mpi4py; }
	$(PYTHON) -m pytest tests/mpi --timeout=1800

# With a real RDMA device: Soft-RoCE in a VM (tests/rdma/rdma-vm, docs/rdma.md). `make test-rdma-short` is CI's.
APT_RDMA := qemu-system-x86 busybox-static cpio kmod iproute2 ibverbs-providers e2fsprogs
rdma-vm: dev types
	@for tool in qemu-system-x86_64 busybox cpio depmod rdma mkfs.ext4; do \
	    if PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null; then continue; fi; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT_RDMA); break; done

# Then the suites over every transport, and over rdma:// what else says how clients are fenced and leases recalled.
RDMA_SUITES := tests/common/test_transport.py tests/common/test_rpc.py tests/common/test_remote.py tests/oss/test_server.py \
    tests/cluster/test_coherence.py tests/client/test_recall.py tests/faults/test_fencing.py
# And clusters in one process, as far as they have been run there (docs/known-limits.md, RDMA).
RDMA_CLUSTERS := tests/cluster/test_mirrors.py tests/cluster/test_dead_writer.py tests/cluster/test_clocks.py \
    tests/cluster/test_access_times.py tests/cluster/test_keys.py tests/cluster/test_write_order.py \
    tests/cluster/test_stale_after_restart.py tests/cluster/test_scrub.py tests/cluster/test_copy_range.py \
    tests/cluster/test_lifecycle.py tests/client/test_locks.py tests/client/test_open_files.py tests/client/test_requests.py \
    tests/client/data/test_quota.py tests/client/data/test_commit.py tests/client/test_coherence.py tests/client/test_statahead.py
# The tier and links, to a directory (`s3-sqlite` would take the same time again; SeaweedFS and moto run there, too), and
# of warmup, fsck and exports that which has to do with transports.
RDMA_TIER := tests/cluster/test_links.py tests/cluster/test_link_export.py tests/cluster/test_tier.py \
    tests/cluster/test_tier_recall.py tests/client/test_file_io.py \
    $(addprefix tests/cluster/test_warmup.py::test_,a_second_epoch_makes_no_requests_to_s3 check_and_evict_tell_the_truth \
    who_reads_does_not_wait_for_a_warmup a_job_goes_on_after_a_restart_and_one_half_named_does_not) \
    $(addprefix tests/cluster/test_fsck.py::test_,orphans_of_a_striped_file_are_destroyed_when_that_is_asked_for \
    a_file_that_a_dead_writer_left_too_short_is_as_long_as_its_objects a_damaged_object_is_named_and_never_hidden \
    an_ost_that_is_down_is_told_and_nothing_is_guessed) \
    $(addprefix tests/cluster/test_exports.py::test_,a_subtree_is_all_that_its_key_sees \
    a_file_that_is_moved_out_of_a_subtree_is_out_of_reach a_read_only_key_reads_and_its_capabilities_are_for_reading \
    our_own_client_keeps_to_a_squash_in_spite_of_its_caches \
    a_session_is_taken_up_again_only_under_its_owner_s_key a_key_that_is_revoked_or_changed_ends_its_sessions)
# Over a mount, with a cluster of processes.
RDMA_MOUNTED := tests/cluster/test_requests.py::test_read_of_one_stripe_is_one_request_to_an_oss \
    tests/cluster/test_requests.py::test_fsync_is_one_request_to_the_oss_and_one_to_the_mds \
    tests/cluster/test_requests.py::test_remote_change_costs_its_reader_one_request
RDMA_NOT := postgres or s3-sqlite or 20983865 or any_sequence
test-rdma: rdma-vm
	RDMA_VM_TIMEOUT=5400 tests/rdma/run $(PYTHON) tests/rdma
	RDMA_VM_TIMEOUT=5400 tests/rdma/run $(PYTHON) --timeout=1200 -p tests.rdma.conftest -m "not slow" \
	    -k "rdma or test_recall or evicted_session" $(RDMA_SUITES)
	RDMA_VM_TIMEOUT=5400 tests/rdma/run $(PYTHON) --timeout=1200 -p tests.rdma.conftest -m "not slow" \
	    -k "not ($(RDMA_NOT))" $(RDMA_CLUSTERS) $(RDMA_MOUNTED)
	RDMA_VM_TIMEOUT=5400 tests/rdma/run $(PYTHON) --timeout=1200 -p tests.rdma.conftest -p tests.s3 -m "not slow" \
	    -k "not ($(RDMA_NOT))" $(RDMA_TIER)

test-rdma-short: rdma-vm
	RDMA_VM_TIMEOUT=1500 tests/rdma/run $(PYTHON) -m "not slow" tests/rdma

# CPU per operation over TCP and over RDMA, in the VM: look at the ratio only.
bench-rdma: rdma-vm
	PYTHONPATH=$(CURDIR)/build/types:$(CURDIR) tests/rdma/rdma-vm $(PYTHON) tests/bench/transports.py \
	    --rounds 6 --scale 0.1 --best tcp rdma

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
