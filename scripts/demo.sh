#!/bin/sh
# The main job on real text: install what is missing, build, train `nano` for about three minutes on the sources of the crates
# that the build fetched, and let it write.
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
cargo build --release --bins
home="${CARGO_HOME:-$HOME/.cargo}"
out="${1:-runs/demo}"
weft="${CARGO_TARGET_DIR:-target}/release/weft"
"$weft" train models/nano.model --data "$home/registry/src" --out "$out" --dump "$out/dump"
"$weft" generate models/nano.model --checkpoint "$out" --max-new 300 --temperature 0.5 --seed 1 \
  --prompt "/// Returns the number of "
