#!/bin/sh
# `weft-run` is all that a machine needs which only runs graphs: small, and without LLVM.
set -eu
cd "$(dirname "$0")/.."
cargo build --release -p weft-runtime --bin weft-run
built=${CARGO_TARGET_DIR:-target}/release/weft-run
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
strip -o "$stripped" "$built"
bytes=$(wc -c < "$stripped")
if [ "$bytes" -ge 10000000 ]; then
  echo "weft-run has $bytes bytes, which is not below 10,000,000" >&2
  exit 1
fi
if ldd "$built" | grep -i llvm || grep -aq LLVMContextCreate "$built"; then
  echo "weft-run has LLVM in it" >&2
  exit 1
fi
echo "weft-run: $bytes bytes, without LLVM"
