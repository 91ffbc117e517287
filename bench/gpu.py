#!/usr/bin/env python3
"""Kernels on a GPU: checked, timed, and beside what PyTorch has, in one command without a network.

    python3 bench/gpu.py [--weft PATH] [arguments of `weft bench-gpu`]

Writes docs/measurements/gpu.md. The first half is `weft bench-gpu`, which needs a driver alone. The
second is left out, with a line that says so, where torch is not there or sees no GPU.
"""

import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs/measurements/gpu.md"
RUNS = 20
PRODUCTS = [
    (4096, 2112, 7168),
    (4096, 24576, 1536),
    (4096, 32768, 512),
    (4096, 7168, 16384),
    (4096, 4096, 7168),
    (4096, 7168, 2048),
    (8192, 8192, 8192),
]


def milliseconds(torch, work):
    """The median of some runs, each behind a write that empties the second-level cache."""
    flushed = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times = []
    for i in range(RUNS + 1):
        flushed.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        if i > 0:
            times.append(start.elapsed_time(stop))
    return statistics.median(times)


def rows(torch):
    """Lines of a table: what, milliseconds, TFLOP/s."""
    draw = lambda *dims: torch.rand(*dims, device="cuda").sub(0.5).bfloat16()
    for m, n, k in PRODUCTS:
        x, w = draw(m, k), draw(n, k)
        yield f"bf16 product {m}x{n}x{k}", milliseconds(torch, lambda: x @ w.T), 2 * m * n * k
    batch, heads, tokens, width, v_width = 1, 128, 4096, 192, 128
    q, k, v = (draw(batch, heads, tokens, w) for w in (width, width, v_width))
    attend = torch.nn.functional.scaled_dot_product_attention
    pairs = batch * heads * tokens * tokens
    time = milliseconds(torch, lambda: attend(q, k, v, is_causal=True))
    # Every pair is counted, as weft does, though half of them are masked.
    yield "attention, causal", time, 2 * pairs * (width + v_width)


def torch_table():
    try:
        import torch
    except ImportError:
        return "Beside PyTorch: skipped, torch is not installed.\n"
    if not torch.cuda.is_available():
        return "Beside PyTorch: skipped, torch sees no GPU.\n"
    out = f"Beside PyTorch {torch.__version__}:\n\n| what | ms | TFLOP/s |\n|---|---|---|\n"
    for what, time, flops in rows(torch):
        out += f"| {what} | {time:.3f} | {flops / time / 1e9:.1f} |\n"
    return out


def main():
    arguments = sys.argv[1:]
    weft = ROOT / "target/release/weft"
    if arguments[:1] == ["--weft"]:
        weft, arguments = pathlib.Path(arguments[1]), arguments[2:]
    if not weft.exists():
        sys.exit(f"{weft} is not there: cargo build --release, or pass --weft PATH")
    done = subprocess.run([weft, "bench-gpu", "-o", TABLE, *arguments])
    if done.returncode != 0:
        sys.exit(done.returncode)
    beside = torch_table()
    print(beside)
    if TABLE.exists():
        TABLE.write_text(f"{TABLE.read_text()}\n{beside}")


if __name__ == "__main__":
    main()
