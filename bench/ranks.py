"""Trains `nano` on several ranks in every layout and says whether they wrote what one rank writes.

usage: python3 bench/ranks.py --data TEXT... [--weft target/debug/weft] [--mpi] [--precision NAME...] [--only WORD...] [--steps N]
                              [--model FILE [--train BLOCK]] [--set KEY=VALUE...] [--out runs/ranks] [--table FILE]

Each run is held against one of a single rank with the same micro-batches: metrics, weights, moments and state byte for byte; where
they are not equal, the largest relative difference of a step's loss, the same over the steps before the loads of experts part (a
token whom two experts suit alike goes to the other one, which is no rounding), and the norm-relative difference of the first
moments, which are sums of gradients. With `--mpi` ranks are processes under `mpirun` (a build with `--features mpi`). A run that is
finished is not made again; a layout that cannot run stops nothing and is a row of the table. Another train block
(bench/recipes/ranks.model has one of a gentler rate) and what `--set` changes hold for all runs and are named in their rows. The
exit status is that of the claim: 0 if every layout but tensor's is equal and none failed. A control run of one rank adds up in
another order.
"""
import argparse
import array
import json
import math
import pathlib
import shutil
import subprocess
import sys

MODEL = "models/nano.model"
# Sixteen micro-batches of 64 tokens. Their shares of an expert's rows stay above those few that a product takes in another order.
SETS = ["batch=16", "micro_batch=1", "sequence=64", "checkpoint_every=1000000", "held_out_every=1000000"]
# No layout: the same run with sums in another order, which shows how far that alone leads.
CONTROL = "one rank, micro-batches of two"
SCHEDULES = ["gpipe", "1f1b", "interleaved", "interleaved-pairs", "zb-h1", "zb-interleaved", "zb-v", "dualpipe", "dualpipe-v"]
FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


def layouts():
    """Name, ranks, arguments of every layout."""
    yield CONTROL, 1, ["micro_batch=2"]
    yield "experts=2", 2, ["--mesh", "data=2,experts=2"]
    yield "experts=4", 4, ["--mesh", "data=4,experts=4"]
    yield "data=2, ZeRO-1", 2, ["--mesh", "data=2", "--zero", "1"]
    yield "tensor=2", 2, ["--mesh", "tensor=2"]
    yield "tensor=2, sequence=2", 2, ["--mesh", "tensor=2,sequence=2"]
    yield "pipeline=2, tensor=2 dualpipe", 4, ["--mesh", "pipeline=2,tensor=2", "--schedule", "dualpipe"]
    for ranks in (2, 4):
        for schedule in SCHEDULES:
            yield f"pipeline={ranks} {schedule}", ranks, ["--mesh", f"pipeline={ranks}", "--schedule", schedule]
    # Eight of the sixteen micro-batches for each of the two along data.
    mesh = "pipeline=4,data=2,experts=2"
    yield "pipeline=4, data=2, experts=2 dualpipe", 8, ["--mesh", mesh, "--schedule", "dualpipe"]
    yield "pipeline=4, data=2, experts=2 dualpipe, ZeRO-1", 8, ["--mesh", mesh, "--schedule", "dualpipe", "--zero", "1"]


def train(args, precision, name, ranks, more):
    """The folder of a finished run, or the last line of what it said."""
    kind = "-".join(["mpi" if args.mpi and ranks > 1 else "threads", *args.named])
    out = args.out / kind / precision / name.replace(",", "").replace(" ", "-")
    if (out / step_folder(args)).exists():
        return out, None
    shutil.rmtree(out, ignore_errors=True)
    command = [str(args.weft), "train", args.model, "--precision", precision, "--data", *args.data, "--out", str(out)]
    command += ["--steps", str(args.steps), "--seed", "0", *(m for m in more if "micro_batch=" not in m)]
    changed = args.set + [m for m in more if "micro_batch=" in m]
    given = {setting.split("=")[0]: setting for setting in SETS + changed}
    if args.train:
        command += ["--train", args.train]
    for setting in given.values():
        command += ["--set", setting]
    if ranks > 1 and args.mpi:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *command]
    elif ranks > 1:
        command += ["--ranks", str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return out, None
    lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines() or ["no word"]
    return None, f"status {done.returncode}: {lines[0].strip()}"


def step_folder(args):
    return f"step-{args.steps:06}"


def is_equal(args, one, several):
    paths = [f"{step_folder(args)}/{name}" for name in FILES] + ["metrics.jsonl"]
    return all((one / path).read_bytes() == (several / path).read_bytes() for path in paths)


def records(run):
    """What was written of each step."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if "loss" in record]


def losses_apart(one, several):
    """The largest relative difference of a step's loss; that of the steps before loads part, and how many these are."""
    pairs = list(zip(records(one), records(several), strict=True))
    apart = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs]
    alike = next((i for i, (a, b) in enumerate(pairs) if a["max_vio"] != b["max_vio"]), len(pairs))
    return max(apart), max(apart[:alike], default=math.nan), alike


def tensors(path):
    """Name and values of each f32 or bf16 tensor of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or info["dtype"] not in ("F32", "BF16"):
            continue
        begin, end = info["data_offsets"]
        raw = data[8 + size + begin : 8 + size + end]
        if info["dtype"] == "BF16":  # the upper half of an f32
            raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
        yield name, array.array("f", raw)


def moments_apart(args, one, several):
    """|a - b| / |a| over all first moments."""
    path = f"{step_folder(args)}/optimizer.safetensors"
    other = dict(tensors(several / path))
    square = apart = 0.0
    for name, a in tensors(one / path):
        if name.endswith(args.moment):
            square += math.fsum(x * x for x in a)
            apart += math.fsum((x - y) ** 2 for x, y in zip(a, other[name], strict=True))
    return math.sqrt(apart / square) if square else math.nan


def verdict(args, one, several):
    """The cells of a row."""
    if is_equal(args, one, several):
        return ["equal", "equal", "equal"]
    loss, before, alike = losses_apart(one, several)
    return [f"{loss:.1e}", f"{before:.1e} ({alike} steps)" if alike else "(0 steps)", f"{moments_apart(args, one, several):.1e}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--weft", type=pathlib.Path, default=pathlib.Path("target/debug/weft"))
    parser.add_argument("--mpi", action="store_true")
    parser.add_argument("--precision", nargs="+", default=["bf16", "deepseek_fp8"])
    parser.add_argument("--only", nargs="+", help="layouts whose name has one of these words")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--train", help="the train block, if the model has several")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the train block, in all runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/ranks"))
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--moment", default=".m", help="how the name of a first moment ends")
    args = parser.parse_args()
    args.named = [*([args.train] if args.train else []), *args.set]

    by = "processes" if args.mpi else "threads"
    columns = [f"layout, {args.steps} steps, {by}", "precision", "losses", "while loads are equal", "first moments"]
    head = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    rows, good = [], True
    print(*head, sep="\n", flush=True)
    for precision in args.precision:
        one, said = train(args, precision, "one", 1, [])
        if one is None:
            sys.exit(f"one rank, {precision}: {said}")
        for name, ranks, more in layouts():
            if args.only and not any(word in name for word in args.only):
                continue
            several, said = train(args, precision, name, ranks, more)
            cells = verdict(args, one, several) if several else [said, "", ""]
            good &= several is not None and (cells[0] == "equal" or "tensor" in name or name == CONTROL)
            rows.append(f"| {' | '.join([', '.join([name, *args.named]), precision, *cells])} |")
            print(rows[-1], flush=True)
    if args.table:
        args.table.write_text("\n".join(head + rows) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
