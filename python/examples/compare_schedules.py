"""Which schedule for my model? Step by step, with pictures; `# %%` begins a cell, for editors that have notebooks.

`python compare_schedules.py [FOLDER]` writes costs and pictures into FOLDER, or where it is run. It needs no PyTorch.
"""

# %% What the parts of the model cost for one micro-batch, estimated or measured (docs/costs.md): here 64 layers
import json
import sys
from pathlib import Path

import dualpipe

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
layer = {
    "forward_ns": 1_500_000,
    "backward_ns": 3_000_000,
    "input_gradient_ns": 1_700_000,
    "weight_gradient_ns": 1_300_000,
    "activation_bytes": 200_000_000,
    "weight_stash_bytes": 75_000_000,
    "message_bytes": 67_108_864,
}
links = {"communication": "links", "latency_ns": 20_000, "bandwidth_bytes_per_s": 5e10}
costs = folder / "costs.json"  # dualpipe-sim reads it, too
costs.write_text(json.dumps({"format": "dualpipe-costs", "version": 1, "parts": [{"count": 64, **layer}], **links}))

# %% All schedules that there are, on 8 ranks with 32 micro-batches; those that need more than 16 GB do not fit
table = dualpipe.table(ranks=8, microbatches=32, costs=costs, memory_limit="16GB")
print(table)

# %% The shortest of those that fit, beside 1F1B: in a notebook a timeline is its picture
best = next(row["schedule"] for row in table.rows if row["fits"])


def run(name: str, microbatches: int) -> dualpipe.Timeline:
    limit = {} if name == "1f1b" else {"memory_limit": "16GB"}  # an automatic schedule is planned for it
    return dualpipe.simulate(name, ranks=8, microbatches=microbatches, costs=costs, **limit)


timelines = {name: run(name, 32) for name in ("1f1b", best)}
for name, timeline in timelines.items():
    picture = folder / f"{name}.svg"
    picture.write_text(timeline.svg(width=1200))
    print(f"{picture.name}: {timeline.makespan / 1e6:.0f} ms, {timeline.bubble:.1%} idle")

# %% Where the one gains on the other
print(timelines["1f1b"].compare(timelines[best]))

# %% How it scales: the more micro-batches, the less it matters
for microbatches in (8, 16, 32, 64):
    idle = [f"{name} {run(name, microbatches).bubble:.1%} idle" for name in timelines]
    print(f"{microbatches} micro-batches: {', '.join(idle)}")
