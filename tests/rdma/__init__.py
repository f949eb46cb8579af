"""Tests with a real RDMA device (Soft-RoCE), which only the VM has: `make test-rdma`. docs/rdma.md."""
