#!/bin/sh
# Everything that must hold: install what is missing, build, run every test.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
cargo test --workspace "$@"
if command -v mpicc >/dev/null && command -v mpirun >/dev/null; then
  cargo test -p weft --features mpi --test mpi
else
  echo "skipped: ranks under mpirun (there is no MPI here; sh scripts/setup.sh mpi installs it)"
fi
