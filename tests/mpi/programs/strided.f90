! Collective and independent I/O from Fortran, with hints: strided DIRECTORY
program strided
  use mpi_f08
  implicit none
  integer, parameter :: blocks = 50, width = 1000
  integer :: rank, ranks, error, i
  integer :: values(blocks * width), back(blocks * width)
  integer(kind=MPI_OFFSET_KIND) :: start, bytes
  type(MPI_File) :: file
  type(MPI_Info) :: hints
  type(MPI_Datatype) :: view
  character(len=1024) :: folder

  call MPI_Init()
  call MPI_Comm_rank(MPI_COMM_WORLD, rank)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks)
  call get_command_argument(1, folder)
  call MPI_Info_create(hints)
  call MPI_Info_set(hints, 'striping_factor', '3')
  call MPI_Info_set(hints, 'striping_unit', '196608')
  call MPI_File_open(MPI_COMM_WORLD, trim(folder) // '/fortran', MPI_MODE_CREATE + MPI_MODE_RDWR, hints, file, error)
  if (error /= MPI_SUCCESS) call MPI_Abort(MPI_COMM_WORLD, 1)
  values = [(rank * 1000000 + i, i = 1, blocks * width)]
  call MPI_Type_vector(blocks, width, width * ranks, MPI_INTEGER, view)
  call MPI_Type_commit(view)
  start = int(rank, MPI_OFFSET_KIND) * width * 4
  call MPI_File_set_view(file, start, MPI_INTEGER, view, 'native', MPI_INFO_NULL)
  call MPI_File_write_all(file, values, blocks * width, MPI_INTEGER, MPI_STATUS_IGNORE, error)
  if (error /= MPI_SUCCESS) call MPI_Abort(MPI_COMM_WORLD, 2)
  ! Each rank reads what another one may still be writing for it: OMPIO does not wait.
  call MPI_File_sync(file)
  call MPI_Barrier(MPI_COMM_WORLD)
  start = 0
  call MPI_File_read_at_all(file, start, back, blocks * width, MPI_INTEGER, MPI_STATUS_IGNORE, error)
  if (any(back /= values)) call MPI_Abort(MPI_COMM_WORLD, 3)
  call MPI_File_get_size(file, bytes)
  if (bytes /= int(ranks, MPI_OFFSET_KIND) * blocks * width * 4) call MPI_Abort(MPI_COMM_WORLD, 4)
  call MPI_File_close(file)
  call MPI_Finalize()
  if (rank == 0) print '(a)', 'passed'
end program strided
