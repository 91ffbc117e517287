"""Trains `nano` and `small` in FP8 and in bf16 on the same text from one seed, and says how far the losses are apart.

usage: python3 bench/recipes.py --data TEXT... [--weft target/release/weft] [--out runs/recipes] [--only NAME...] [--threads N]

A run that is finished is not made again, so the script can be stopped and started. The loss is smoothed (exponential mean,
0.9); the relative difference to the bf16 run, with its sign, is averaged over windows of 200 steps after the first tenth (runs
of 200 steps: over what follows the first tenth). `bf16, other order` differs from `bf16` in nothing but the order of sums: its
micro-batches are half as large. Writes docs/measurements/recipes.md and recipes.svg.
"""
import argparse
import json
import pathlib
import subprocess

NANO, SMALL = "bench/recipes/nano.model", "models/small.model"
# Name, model, precision, steps, further settings, the run it is held against.
RUNS = [
    ("nano bf16", NANO, "bf16", 2000, [], None),
    ("nano deepseek_fp8", NANO, "deepseek_fp8", 2000, [], "nano bf16"),
    ("nano bf16, other order", NANO, "bf16", 2000, ["micro_batch=2"], "nano bf16"),
    ("small bf16", SMALL, "bf16", 300, [], None),
    ("small deepseek_fp8", SMALL, "deepseek_fp8", 300, [], "small bf16"),
    ("small bf16, other order", SMALL, "bf16", 300, ["micro_batch=4"], "small bf16"),
    ("nano hopper14", NANO, "hopper14", 200, [], "nano bf16"),
    ("nano hopper14_unpromoted", NANO, "hopper14_unpromoted", 200, [], "nano bf16"),
    ("nano blocks_of_gradients", NANO, "blocks_of_gradients", 200, [], "nano bf16"),
]
EMA, WINDOW = 0.9, 200


def folder(out, name):
    return out / name.replace(",", "").replace(" ", "-")


def train(args, name, model, precision, steps, sets):
    """One run, gone on with where it was stopped."""
    out = folder(args.out, name)
    if len(losses(out)) >= steps:
        return
    command = [args.weft, "train", model, "--precision", precision, "--data", *args.data, "--out", str(out), "--steps", str(steps)]
    for setting in sets:
        command += ["--set", setting]
    if args.threads:
        command += ["--threads", str(args.threads)]
    if (out / "metrics.jsonl").exists():
        command.append("--resume")
    print(name, flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def losses(out):
    path = out / "metrics.jsonl"
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines() if line.endswith("}"))
    return [line["loss"] for line in lines if "loss" in line]


def smooth(values):
    out, mean = [], values[0]
    for value in values:
        mean = EMA * mean + (1 - EMA) * value
        out.append(mean)
    return out


def differences(run, base):
    """Signed relative differences of the smoothed losses, step by step, in percent."""
    n = min(len(run), len(base))
    return [100 * (a - b) / b for a, b in zip(smooth(run[:n]), smooth(base[:n]))]


def windows(diffs):
    first = len(diffs) // 10
    rest = diffs[first:]
    if len(rest) < 2 * WINDOW:
        return [sum(rest) / len(rest)] if rest else []
    return [sum(part) / len(part) for part in (rest[i : i + WINDOW] for i in range(0, len(rest), WINDOW)) if len(part) >= WINDOW // 2]


def table(args):
    lines = [
        "| run | steps | loss at the end (smoothed) | mean difference of a window, % | largest of a window, % |",
        "|---|---|---|---|---|",
    ]
    curves = {}
    for name, _, _, steps, _, base in RUNS:
        run = losses(folder(args.out, name))[:steps]
        if not run:
            continue
        row = [name, len(run), f"{smooth(run)[-1]:.4f}", "", ""]
        if base and losses(folder(args.out, base)):
            diffs = differences(run, losses(folder(args.out, base)))
            means = windows(diffs)
            curves[name] = diffs
            if means:
                row[3] = f"{sum(means) / len(means):+.3f}"
                row[4] = f"{max(means, key=abs):+.3f}"
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines), curves


def picture(curves, path, limit=1.0):
    width, height, left, top = 900, 420, 60, 20
    colours = ["#c0392b", "#7f8c8d", "#2980b9", "#95a5a6", "#27ae60", "#8e44ad", "#d35400"]
    steps = max((len(c) for c in curves.values()), default=1)
    x = lambda i: left + (width - left - 20) * i / max(steps - 1, 1)
    y = lambda v: top + (height - 2 * top - 20) * (0.5 - max(-limit, min(limit, v)) / (2 * limit))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in [-limit, -0.25, 0, 0.25, limit]:
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:+g} %</text>')
    for i, (name, curve) in enumerate(curves.items()):
        step = max(1, len(curve) // 400)
        points = " ".join(f"{x(j):.1f},{y(curve[j]):.1f}" for j in range(0, len(curve), step))
        colour = colours[i % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        parts.append(f'<text x="{left + 10 + 270 * (i % 3)}" y="{height - 34 + 15 * (i // 3)}" fill="{colour}">{name}</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/recipes"))
    parser.add_argument("--only", nargs="+", help="names of runs to make; the table is of all there are")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, model, precision, steps, sets, _ in RUNS:
        if not args.only or name in args.only:
            train(args, name, model, precision, steps, sets)
    text, curves = table(args)
    print(text)
    picture(curves, pathlib.Path("docs/measurements/recipes.svg"))
    pathlib.Path(args.out / "table.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
