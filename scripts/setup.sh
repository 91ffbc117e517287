#!/bin/sh
# Install what building Weft needs on Debian: LLVM 22 and a C toolchain for linking. Does nothing where it is there.
# With `mpi` also what `--features mpi` needs.
set -eu
if [ "${1:-}" = mpi ] && ! command -v mpicc >/dev/null; then
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  echo "setup: installing OpenMPI and libclang (Debian packages)" >&2
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
    libopenmpi-dev openmpi-bin libclang-dev >/dev/null
fi
if [ -x /usr/lib/llvm-22/bin/llvm-config ] && [ -e /usr/include/zstd.h ] && [ -e /usr/include/zlib.h ]; then
  exit 0
fi
as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
echo "setup: installing LLVM 22 (Debian packages)" >&2
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends \
  llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev gcc libc6-dev >/dev/null
