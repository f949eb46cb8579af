"""Subarray views, collective and nonblocking I/O from Python: with_mpi4py.py FILE [NAME=VALUE…]"""

import sys

import numpy
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, ranks = comm.rank, comm.size
hints = MPI.Info.Create()
for word in sys.argv[2:]:
    name, _, value = word.partition("=")
    hints.Set(name, value)
rows, columns = 256, 128 * ranks
mine = numpy.arange(rows * 128, dtype="f8").reshape(rows, 128) + rank * 1e6
view = MPI.DOUBLE.Create_subarray([rows, columns], [rows, 128], [0, 128 * rank])
view.Commit()
file = MPI.File.Open(comm, sys.argv[1], MPI.MODE_CREATE | MPI.MODE_RDWR, hints)
file.Set_view(0, MPI.DOUBLE, view)
file.Write_all(mine)
file.Sync()
comm.Barrier()
back = numpy.empty_like(mine)
file.Read_at_all(0, back)
assert (back == mine).all()
file.Set_view(0, MPI.BYTE)
assert file.Get_size() == rows * columns * 8
request = file.Iread_at(8 * 128 * rank, back[0])
request.Wait()
assert (back[0] == mine[0]).all()
file.Close()
if rank == 0:
    print("passed")
