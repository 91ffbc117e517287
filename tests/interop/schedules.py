"""Holds `weft schedule --csv` against the tables of torch.distributed.pipelining, at many sizes.

    python tests/interop/schedules.py target/debug/weft                 # compare
    python tests/interop/schedules.py --write tests/schedules/torch     # the small tables of the tests

A schedule of torch needs a process group; the part of it that makes tables does not, so only that is
called. Where torch refuses a size, or would wait for ever, weft must refuse it too.
"""

import subprocess
import sys
from pathlib import Path

from torch.distributed.pipelining import schedules as torch_schedules

CLASSES = {
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zb-interleaved": torch_schedules.ScheduleInterleavedZeroBubble,
    "zb-v": torch_schedules.ScheduleZBVZeroBubble,
    "dualpipe-v": torch_schedules.ScheduleDualPipeV,
}


def table(name, ranks, micro_batches, stages):
    """The rows of torch's table; None where its constructor refuses the size."""
    cls = CLASSES.get(name, torch_schedules.ScheduleInterleavedZeroBubble)
    s = cls.__new__(cls)
    s.pp_group_size, s._n_microbatches, s.n_local_stages = ranks, micro_batches, stages
    s.num_stages = s._num_stages = ranks * stages
    s.number_of_rounds = max(1, micro_batches // ranks)
    s.microbatches_per_round = micro_batches // s.number_of_rounds
    if "interleaved" in name:
        if micro_batches % s.number_of_rounds:
            return None
    if name == "dualpipe-v" and micro_batches < 2 * ranks:
        return None
    order = {rank: s._calculate_single_rank_operations(rank) for rank in range(ranks)}
    if name in ("zb-interleaved", "zb-h1"):
        s.pipeline_order = order
        order = s._add_bubbles_to_actions(ranks * stages)
    return [",".join("" if a is None else str(a) for a in order[r]) for r in range(ranks)]


def sizes(name, ranks_max, micro_batches_max):
    stages = {"interleaved": (2, 3, 4), "zb-interleaved": (2, 3, 4), "zb-h1": (1,)}.get(name, (2,))
    for ranks in range(1, ranks_max + 1):
        for micro_batches in range(1, micro_batches_max + 1):
            for n in stages:
                yield ranks, micro_batches, n


NAMES = ["interleaved", "zb-interleaved", "zb-h1", "zb-v", "dualpipe-v"]
LARGE = [(16, 32, 2), (16, 48, 2), (16, 120, 2), (16, 128, 2), (32, 64, 2), (12, 36, 3), (16, 10, 2)]


def compare(weft):
    differ = same = refused = 0
    for name in NAMES:
        large = [(r, n, 1 if name == "zb-h1" else s) for r, n, s in LARGE]
        large = [x for x in large if name in ("interleaved", "zb-interleaved") or x[2] < 3]
        for ranks, n, stages in [*sizes(name, 9, 22), *large]:
            want = table(name, ranks, n, stages)
            args = [name, "--ranks", ranks, "--micro-batches", n, "--stages-per-rank", stages, "--csv"]
            done = subprocess.run([weft, "schedule", *map(str, args)], capture_output=True, text=True)
            got = done.stdout.splitlines() if done.returncode == 0 else None
            if got == want:
                same += want is not None
                refused += want is None
            else:
                differ += 1
                print(name, ranks, n, stages, done.stderr.strip(), want and want[-1][:200])
    print(f"{same} tables equal, {refused} sizes refused by both, {differ} differ")
    return differ == 0


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    few = [(1, 3, 2), (2, 3, 2), (3, 5, 2), (3, 7, 2), (3, 8, 3), (4, 3, 2), (4, 10, 2), (5, 12, 3)]
    for name in NAMES:
        text = ""
        for ranks, n, stages in few:
            if name in ("zb-v", "dualpipe-v"):
                stages = 2
            if name == "zb-h1":
                stages = 1
            rows = table(name, ranks, n, stages)
            if rows is not None:
                text += f"# {ranks} {n} {stages}\n" + "".join(f"{row}\n" for row in rows)
        (folder / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        sys.exit(0 if compare(sys.argv[1]) else 1)
