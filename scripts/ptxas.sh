#!/bin/sh
# Prints the folder with `ptxas` and, where it can be had, `nvdisasm`; fetches them once, as Python
# wheels, into target/ptxas. Fails, with the reason on stderr, where they cannot be had.
#
# With `all` it assembles every kernel of every shipped model instead, for training, prefill and
# decoding, in every precision, and prints what they have; a test takes a part of that.
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = all ]; then
    exec env WEFT_PTXAS=all cargo test --test ptxas -- --nocapture the_assembler
fi
tools=target/ptxas
bin=$tools/bin
if [ ! -x "$bin/ptxas" ]; then
    mkdir -p "$tools"
    # One at a time: tests ask for it side by side.
    exec 9>"$tools/lock"
    flock 9
fi
if [ ! -x "$bin/ptxas" ]; then
    wheels=$(mktemp -d "$tools/wheels.XXXXXX")
    trap 'rm -rf "$wheels"' EXIT
    get() {
        python3 -m pip download --quiet --no-deps --only-binary=:all: \
            --disable-pip-version-check --timeout 20 --retries 1 -d "$wheels" "$1" >&2
        python3 -m zipfile -e "$wheels"/*.whl "$wheels"
        rm "$wheels"/*.whl
    }
    get nvidia-cuda-nvcc==13.0.88
    get nvidia-cuda-nvdisasm==13.5.37 || echo "no nvdisasm: SASS is not counted" >&2
    mkdir -p "$bin"
    for tool in nvdisasm ptxas; do
        from=$(find "$wheels" -type f -name "$tool" | head -n 1)
        [ -z "$from" ] || { chmod +x "$from"; mv "$from" "$bin/$tool"; }
    done
fi
[ -x "$bin/ptxas" ] || { echo "the wheel has no ptxas" >&2; exit 1; }
echo "$PWD/$bin"
