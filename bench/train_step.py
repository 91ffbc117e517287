"""Training step of models/small.model beside PyTorch + transformers, in one run on one machine.

usage: python bench/train_step.py --data TEXT... [--steps 30] [--threads N] [--weft target/release/weft]

Weft trains first; the config.json of the checkpoint it writes makes the model that PyTorch then times on the same sizes:
transformers' DeepseekV3 with AdamW, eager in f32, torch.compile in f32, eager in bf16. Prints tokens per second (PyTorch: of
the median step; Weft: what its last progress line says) and Weft's ratio to the best of them. Needs torch, transformers (PyPI).
"""
import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, SEQUENCE, WARM_STEPS = 8, 256, 3


def weft(args, out):
    command = [args.weft, "train", "models/small.model", "--out", out, "--set", f"steps={args.steps}", "--data", *args.data]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    rates = [float(rate) for rate in re.findall(r"([\d.]+) tokens/s", done.stdout)]
    checkpoint = sorted(pathlib.Path(out).glob("step-*"))[-1]
    return rates[-1], checkpoint


def torch_peer(checkpoint, steps, mode):
    """Runs in a process of its own, so that no mode inherits another's memory or compiled code."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if mode == "bf16":
        model = model.to(torch.bfloat16)
    run = torch.compile(model) if mode == "compile" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    tokens = torch.randint(0, config.vocab_size, (BATCH, SEQUENCE))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        run(tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    print(BATCH * SEQUENCE / statistics.median(times[WARM_STEPS:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--weft", default="target/release/weft")
    parser.add_argument("--peer", nargs=2, metavar=("CHECKPOINT", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return torch_peer(args.peer[0], args.steps, args.peer[1])
    with tempfile.TemporaryDirectory() as folder:
        ours, checkpoint = weft(args, folder)
        print(f"weft            {ours:8.0f} tokens/s", flush=True)
        peers = {}
        for mode in ["eager", "compile", "bf16"]:
            command = [sys.executable, __file__, "--peer", checkpoint, mode, "--steps", str(min(args.steps, 12))]
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            if done.returncode != 0:
                print(f"torch {mode}: failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            peers[mode] = float(done.stdout.split()[-1])
            print(f"torch {mode:9} {peers[mode]:8.0f} tokens/s", flush=True)
        if peers:
            best = max(peers, key=peers.get)
            print(f"weft / torch {best}: {ours / peers[best]:.2f}")


main()
