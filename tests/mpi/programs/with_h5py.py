"""Parallel HDF5: all ranks fill one data set, stored whole and in chunks: with_h5py.py FILE"""

import sys

import h5py
import numpy
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, ranks = comm.rank, comm.size
rows = 64
with h5py.File(sys.argv[1], "w", driver="mpio", comm=comm) as file:
    for name, chunks in (("whole", None), ("chunked", (16, 500))):
        data = file.create_dataset(name, (rows * ranks, 1000), "f8", chunks=chunks)
        with data.collective:
            data[rank * rows : (rank + 1) * rows] = numpy.full((rows, 1000), rank + 0.5)
    file.attrs["ranks"] = ranks
with h5py.File(sys.argv[1], "r", driver="mpio", comm=comm) as file:
    other = (rank + 1) % ranks
    for name in ("whole", "chunked"):
        assert (file[name][other * rows : (other + 1) * rows] == other + 0.5).all()
if rank == 0:
    print("passed")
