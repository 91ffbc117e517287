#!/bin/sh
# Everything that must hold: install what is missing, build, run every test.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
exec cargo test --workspace "$@"
