/* PnetCDF: collective and nonblocking writes of one variable, read back after opening it again: `pnetcdf FILE`. */
#include <mpi.h>
#include <pnetcdf.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                           \
    do {                                                                      \
        int error = (call);                                                   \
        if (error != NC_NOERR) {                                              \
            fprintf(stderr, "%s: %s\n", #call, ncmpi_strerror(error));        \
            MPI_Abort(MPI_COMM_WORLD, 1);                                     \
        }                                                                     \
    } while (0)

int main(int argc, char **argv)
{
    enum { ROWS = 40, COLUMNS = 3000 };
    int rank, size, file, dimensions[2], variable, nonblocking, request, status;
    static double mine[ROWS * COLUMNS], back[ROWS * COLUMNS];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        mine[i] = rank * 1e6 + i;
    CHECK(ncmpi_create(MPI_COMM_WORLD, argv[1], NC_CLOBBER | NC_64BIT_DATA, MPI_INFO_NULL, &file));
    CHECK(ncmpi_def_dim(file, "row", (MPI_Offset)ROWS * size, &dimensions[0]));
    CHECK(ncmpi_def_dim(file, "column", COLUMNS, &dimensions[1]));
    CHECK(ncmpi_def_var(file, "v", NC_DOUBLE, 2, dimensions, &variable));
    CHECK(ncmpi_def_var(file, "w", NC_DOUBLE, 2, dimensions, &nonblocking));
    CHECK(ncmpi_enddef(file));
    MPI_Offset start[2] = {(MPI_Offset)ROWS * rank, 0}, count[2] = {ROWS, COLUMNS};
    CHECK(ncmpi_put_vara_double_all(file, variable, start, count, mine));
    CHECK(ncmpi_iput_vara_double(file, nonblocking, start, count, mine, &request));
    CHECK(ncmpi_wait_all(file, 1, &request, &status));
    CHECK(ncmpi_close(file));
    CHECK(ncmpi_open(MPI_COMM_WORLD, argv[1], NC_NOWRITE, MPI_INFO_NULL, &file));
    for (int which = 0; which < 2; which++) {
        CHECK(ncmpi_get_vara_double_all(file, which, start, count, back));
        for (int i = 0; i < ROWS * COLUMNS; i++)
            if (back[i] != mine[i])
                MPI_Abort(MPI_COMM_WORLD, 2);
    }
    CHECK(ncmpi_close(file));
    MPI_Finalize();
    if (rank == 0)
        puts("passed");
    return 0;
}
