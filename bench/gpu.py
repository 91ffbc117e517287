#!/usr/bin/env python3
"""Kernels on a GPU: checked, timed, and beside what others have for the same problem, in one command without a network.

usage: python3 bench/gpu.py [--weft PATH] [--table FILE.md] [--from NUMBERS.json] [arguments of `weft bench-gpu`]

Writes docs/measurements/gpu.md and, beside it, gpu.json with all numbers; `--from` makes the table again from such a file and
runs nothing. The first table is that of `weft bench-gpu`, which needs a driver alone. The second has, for each problem that
others can do, weft's time and theirs: cuBLAS products of bf16, torch's products of codes with scales of 1x128 and 128x128
(`scaled_mm`), DeepGEMM's where it is installed, attention by cuDNN and by FlashAttention. Sizes are those that weft timed; data
is random; before each run the second-level cache is overwritten; times are a median and where a tenth lies beyond. Products of
codes stand there twice: alone, and with the quantization of both operands in the timed region (torch.compile makes that of
others, where it can). What is not there, or gives other numbers than a product of bf16, is a line that says so.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
LARGEST = 448.0  # of e4m3
# Codes of random numbers are 2 % off in the norm; a wrong layout of scales is far more.
OFF_MOST = 0.1


def milli_to_micro(milliseconds):
    """The median of some runs, and where a tenth of them lies beyond, as `weft bench-gpu` counts."""
    micro = sorted(1e3 * t for t in milliseconds)
    tenth = lambda n: micro[(len(micro) - 1) * n // 10]
    return {"median_us": tenth(5), "tenth_us": tenth(1), "ninetieth_us": tenth(9)}


class Clock:
    """Times work on the GPU. What a run launches is queued while the cache is overwritten, so the host is not in the way."""

    def __init__(self, torch, runs):
        self.torch, self.runs = torch, runs
        self.flushed = torch.empty(256 << 20, dtype=torch.int8, device="cuda")

    def __call__(self, work):
        times = []
        for i in range(self.runs + 3):
            self.flushed.zero_()
            start, stop = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            stop.synchronize()
            if i >= 3:  # clocks are up, kernels chosen and compiled
                times.append(start.elapsed_time(stop))
        return milli_to_micro(times)


def by_row(torch, x):
    """e4m3 codes of groups of 1x128, and their scales, which lie column by column."""
    groups = x.float().unflatten(1, (-1, 128))
    scales = groups.abs().amax(2).clamp(1e-4) / LARGEST
    codes = (groups / scales.unsqueeze(2)).flatten(1).to(torch.float8_e4m3fn)
    return codes, scales.t().contiguous().t()


def by_block(torch, w):
    """e4m3 codes of blocks of 128x128, and their scales, row by row. A last block may have fewer rows."""
    rows = w.shape[0]
    padded = torch.nn.functional.pad(w.float(), (0, 0, 0, -rows % 128))
    blocks = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    scales = blocks.abs().amax((1, 3)).clamp(1e-4) / LARGEST
    codes = (blocks / scales[:, None, :, None]).flatten(2, 3).flatten(0, 1)
    return codes[:rows].to(torch.float8_e4m3fn), scales.contiguous()


def quantizers(torch):
    """Both, compiled where that works; and what is to be said of it."""
    rows, blocks = (lambda x: by_row(torch, x)), (lambda w: by_block(torch, w))
    try:
        compiled = torch.compile(rows, dynamic=False), torch.compile(blocks, dynamic=False)
        sample = torch.rand(256, 256, device="cuda").bfloat16()
        for work in compiled:
            work(sample)
        return *compiled, ""
    except Exception:  # of any compiler beneath
        return rows, blocks, ", not compiled"


def scaled_product(torch):
    """`(codes, scales), (codes, scales) -> bf16 product`, of rows of 1x128 and of blocks, by torch."""
    functional = torch.nn.functional
    if hasattr(functional, "scaled_mm"):
        kinds = functional.ScalingType

        def product(x, w):
            # Scales of blocks lie along k, padded to a multiple of four.
            scales = functional.pad(w[1], (0, -w[1].shape[1] % 4)).t()
            recipes = kinds.BlockWise1x128, kinds.BlockWise128x128
            return functional.scaled_mm(x[0], w[0].t(), x[1], recipes[0], scales, recipes[1], output_dtype=torch.bfloat16)

        return product
    return lambda x, w: torch._scaled_mm(x[0], w[0].t(), scale_a=x[1], scale_b=w[1].t(), out_dtype=torch.bfloat16)


def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def sizes_of(row):
    return [int(n) for n in re.findall(r"\d+", row["sizes"])]


def largest(row):
    """The launch that the rest of a problem is for."""
    return max(row["launches"], key=lambda launch: launch["flops"])


class Others:
    """What others have for a problem of weft's: entries of a table, and lines for what is not there."""

    def __init__(self, torch, deep_gemm, runs):
        self.torch, self.deep_gemm = torch, deep_gemm
        self.clock = Clock(torch, runs)
        self.rows, self.blocks, self.note = quantizers(torch)
        self.found, self.skipped = [], []

    def add(self, row, part, who, work, expected=None):
        name = f"{row['case']} {row['sizes']}{part}: {who}"
        try:
            found = work()
            if expected is not None:
                off = ((found.float() - expected).norm() / expected.norm()).item()
                if not off < OFF_MOST:
                    self.skipped.append(f"{name}: its result is off by {off:.1e}")
                    return
            self.found.append({"case": row["case"], "sizes": row["sizes"], "part": part, "who": who, **self.clock(work)})
        except Exception as error:  # a build without it, a shape it does not take
            self.skipped.append(f"{name}: {first_line(error)}")

    def draw(self, *dims):
        return self.torch.rand(*dims, device="cuda").sub(0.5).bfloat16()

    def bf16_product(self, row):
        m, n, k = sizes_of(row)
        x, w = self.draw(m, k), self.draw(n, k)
        self.add(row, "", "cuBLAS", lambda: x @ w.T)

    def e4m3_product(self, row):
        m, n, k = sizes_of(row)
        x, w = self.draw(m, k), self.draw(n, k)
        expected = x.float() @ w.float().T
        xq, wq = self.rows(x), self.blocks(w)
        torch_product = scaled_product(self.torch)
        self.add(row, ALONE, "torch scaled_mm", lambda: torch_product(xq, wq), expected)
        quantized = f"torch scaled_mm{self.note}"
        self.add(row, WITH, quantized, lambda: torch_product(self.rows(x), self.blocks(w)), expected)
        if self.deep_gemm is None:
            return
        out = self.torch.empty(m, n, dtype=self.torch.bfloat16, device="cuda")

        def deep(x, w):
            self.deep_gemm.fp8_gemm_nt(x, w, out)
            return out

        self.add(row, ALONE, "DeepGEMM", lambda: deep(xq, wq), expected)
        self.add(row, WITH, f"DeepGEMM{self.note}", lambda: deep(self.rows(x), self.blocks(w)), expected)

    def bf16_by_expert(self, row):
        groups, m, n, k = sizes_of(row)
        x, w = self.draw(groups * m, k), self.draw(groups, n, k)
        ends = self.torch.arange(1, groups + 1, device="cuda", dtype=self.torch.int32) * m
        self.add(row, "", "torch _grouped_mm", lambda: self.torch._grouped_mm(x, w.transpose(1, 2), offs=ends))

    def e4m3_by_expert(self, row):
        if self.deep_gemm is None:
            return
        groups, m, n, k = sizes_of(row)
        torch = self.torch
        x, w = self.draw(groups * m, k), self.draw(groups, n, k)
        expected = torch.cat([a.float() @ b.float().T for a, b in zip(x.split(m), w)])
        xq, blocks = self.rows(x), [self.blocks(b) for b in w]
        wq = torch.stack([codes for codes, _ in blocks]), torch.stack([scales for _, scales in blocks])
        of = torch.arange(groups, device="cuda", dtype=torch.int32).repeat_interleave(m)
        out = torch.empty(groups * m, n, dtype=torch.bfloat16, device="cuda")

        def deep():
            self.deep_gemm.m_grouped_fp8_gemm_nt_contiguous(xq, wq, out, of)
            return out

        self.add(row, ALONE, "DeepGEMM", deep, expected)

    def attention(self, row, backward=False):
        torch = self.torch
        batch, tokens, heads = sizes_of(row)
        draw = lambda width: self.draw(batch, heads, tokens, width).requires_grad_(backward)
        q, k, v = draw(192), draw(192), draw(128)
        gradient = self.draw(batch, heads, tokens, 128)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def work():
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            if backward:
                torch.autograd.grad(y, (q, k, v), gradient)

        for who, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION)]:
            with sdpa_kernel(backend):
                self.add(row, "", f"torch, {who}", work)

    def of(self, row):
        """All that can do a problem of weft's."""
        kinds = {
            "bf16 product": self.bf16_product,
            "e4m3 product": self.e4m3_product,
            "products by expert": self.bf16_by_expert,
            "codes by expert": self.e4m3_by_expert,
            "attention": self.attention,
            "attention and its derivative": lambda row: self.attention(row, backward=True),
        }
        try:
            kinds.get(row["case"], lambda row: None)(row)
        except Exception as error:
            self.skipped.append(f"{row['case']} {row['sizes']}: {first_line(error)}")


# Parts of a problem.
ALONE, WITH = ", alone", ", with quantization"
OTHERS = "beside others"


def beside(timed):
    """What others take for the problems that weft timed, and what could not be had."""
    nothing = lambda why: {"versions": [], "found": [], "skipped": [f"{OTHERS}: {why}"]}
    if timed is None:
        return nothing("nothing is timed on this device")
    if timed["small"]:
        return nothing("small sizes say nothing of kernels")
    try:
        import torch
    except ImportError:
        return nothing("torch is not installed")
    if not torch.cuda.is_available():
        return nothing("torch sees no GPU")
    versions, skipped, deep_gemm = [f"torch {torch.__version__}"], [], None
    try:
        import deep_gemm

        versions.append(f"DeepGEMM {getattr(deep_gemm, '__version__', '')}".strip())
    except Exception as error:  # a wheel for another machine does not import
        skipped.append(f"DeepGEMM: {first_line(error)}")
    others = Others(torch, deep_gemm, timed["runs"])
    for row in timed["rows"]:
        others.of(row)
        torch.cuda.empty_cache()
    return {"versions": versions, "found": others.found, "skipped": skipped + others.skipped}


def own_times(row, part):
    """What weft takes for a part of a problem, and its kernel."""
    if part == ALONE:
        # Of codes by expert the sums by row: those of weights are another product.
        rows = [launch for launch in row["launches"] if "_rows_" in launch["kernel"]]
        launch = max(rows, key=lambda launch: launch["flops"]) if rows else largest(row)
        return launch, launch["flops"]
    return row["total"], sum(launch["flops"] for launch in row["launches"] if launch["kernel"].startswith("sm90a_"))


def comparison(timed, others):
    """The table of weft beside others, a problem after the other."""
    lines = ["| problem | by | µs | 10 % | 90 % | TFLOP/s | weft's speed |", "|---|---|---|---|---|---|---|"]

    def line(problem, who, times, flops, speed):
        micro = [times[key] for key in ("median_us", "tenth_us", "ninetieth_us")]
        cells = [problem, who, *(f"{t:.1f}" for t in micro), f"{flops / micro[0] / 1e6:.1f}", speed]
        lines.append(f"| {' | '.join(cells)} |")

    for row in timed["rows"]:
        for part in ("", ALONE, WITH):
            same = lambda entry: all(entry[key] == row[key] for key in ("case", "sizes")) and entry["part"] == part
            entries = [entry for entry in others["found"] if same(entry)]
            if not entries:
                continue
            own, flops = own_times(row, part)
            problem = f"{row['case']} {row['sizes']}{part}"
            line(problem, "weft", own, flops, "")
            for entry in entries:
                line(problem, entry["who"], entry, flops, f"{entry['median_us'] / own['median_us']:.2f}x")
    return lines if len(lines) > 2 else []


def document(numbers):
    """What is written behind weft's own table."""
    timed, others = numbers["weft"]["timed"], numbers["beside"]
    table = comparison(timed, others) if timed else []
    lines = [f"Beside {', '.join(others['versions'])}. Weft's speed is their time by its own.", "", *table, ""] if table else []
    return "\n".join(lines + [f"Skipped: {why}." for why in others["skipped"]]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", type=pathlib.Path, default=ROOT / "target/release/weft")
    parser.add_argument("--table", type=pathlib.Path, default=ROOT / "docs/measurements/gpu.md")
    parser.add_argument("--from", dest="numbers", type=pathlib.Path, help="numbers that were written before")
    args, more = parser.parse_known_args()

    if args.numbers:
        print(document(json.loads(args.numbers.read_text())), end="")
        return
    if not args.weft.exists():
        sys.exit(f"{args.weft} is not there: cargo build --release, or pass --weft PATH")
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weft.json"
        done = subprocess.run([args.weft, "bench-gpu", "-o", args.table, "--json", file, *more])
        if done.returncode != 0:
            sys.exit(done.returncode)
        weft = json.loads(file.read_text())
    numbers = {"weft": weft, "beside": beside(weft["timed"])}
    text = document(numbers)
    print(text, end="")
    if weft["timed"]:
        args.table.write_text(f"{args.table.read_text()}\n{text}")
        args.table.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
