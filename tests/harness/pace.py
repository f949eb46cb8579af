"""How fast the machine is that tests run on."""

import os

SLOWER = 20 if os.environ.get("RDMA_VM") else 1
"""So many times as long everything takes here: in the VM of tests/rdma Python is 20 times slower."""
