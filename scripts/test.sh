#!/bin/sh
# Everything that must hold: install what is missing, build, run every test.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
cargo test --workspace "$@"
sh scripts/size.sh
# The bindings of MPI are made with libclang.
libclang=$(ls /usr/lib/llvm-*/lib/libclang.so* /usr/lib/llvm-*/lib/libclang-[0-9]*.so* 2>/dev/null || true)
if [ -n "$libclang" ] && command -v mpicc >/dev/null && command -v mpirun >/dev/null; then
  cargo test -p weft --features mpi --test mpi
else
  echo "skipped: ranks under mpirun (there is no MPI here; sh scripts/setup.sh mpi installs it)"
fi
