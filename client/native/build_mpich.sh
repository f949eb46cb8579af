#!/bin/sh
# Builds Debian's MPICH with our ROMIO driver: build_mpich.sh FOLDER. FOLDER/installed/bin has its mpicc and mpirun then.
#
# For an MPICH of your own, do what `patch_romio` does to its sources, and configure it with LIBS=-lnacre_io.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
library=${NACRE_IO_FOLDER:-$here/../../build/native}
mkdir -p "$1" "$library"
work=$(cd "$1" && pwd)
library=$(cd "$library" && pwd)

fetch() {
    # The machine's own package sources, as sources of source, kept apart from its lists.
    mkdir -p "$work/lists/partial"
    if [ -e /etc/apt/sources.list.d/debian.sources ]; then
        sed 's/^Types: .*/Types: deb-src/' /etc/apt/sources.list.d/debian.sources >"$work/source.sources"
        list=$work/source.sources
    else
        sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >"$work/source.list"
        list=$work/source.list
    fi
    set -- -q -o Dir::Etc::sourcelist="$list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists"
    apt-get "$@" update
    (cd "$work" && apt-get "$@" source --download-only mpich)
    (cd "$work" && tar xJf mpich_*.orig.tar.xz && mv mpich-[0-9]*/ source)
}

patch_romio() {
    romio=$work/source/src/mpi/romio/adio
    cp "$here/ad_nacre.c" "$here/nacre_io.h" "$romio/ad_ufs/"
    # Compiled with the driver beside it, so that no makefile need be made anew.
    grep -q ad_nacre "$romio/ad_ufs/ad_ufs.c" || echo '#include "ad_nacre.c"' >>"$romio/ad_ufs/ad_ufs.c"
    grep -q ADIO_NACRE "$romio/include/adio.h" ||
        sed -i '/^#define ADIO_TESTFS/a #define ADIO_NACRE               170    /* nacrefs */' "$romio/include/adio.h"
    grep -q NACRE "$romio/include/adioi_fs_proto.h" ||
        sed -i '/^#ifdef ROMIO_TESTFS/i extern struct ADIOI_Fns_struct ADIO_NACRE_operations;' \
            "$romio/include/adioi_fs_proto.h"
    grep -q NACRE "$romio/common/ad_fstype.c" ||
        sed -i '/^static struct ADIO_FSTypes fstypes/a \    {\&ADIO_NACRE_operations, ADIO_NACRE, "nacre:"},' \
            "$romio/common/ad_fstype.c"
}

build() {
    mkdir -p "$work/build"
    cd "$work/build"
    [ -e Makefile ] || nice "$work/source/configure" -q --prefix="$work/installed" --with-device=ch3:nemesis \
        --disable-fortran --disable-cxx --disable-static --enable-romio --with-file-system=ufs \
        --with-datatype-engine=dataloop --enable-fast=O1 \
        LIBS=-lnacre_io LDFLAGS="-L$library -Wl,-rpath,$library" >configure.log
    nice make -s -j2 >make.log
    nice make -s install >install.log
}

[ -e "$work/source" ] || fetch
patch_romio
build
echo "$work/installed/bin/mpicc"
