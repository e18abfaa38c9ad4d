"""Print the README's table from the bundles of finished runs.

    python benchmarks/table.py petra-out/digits petra-out/events ...

A row a run: what its manifest says, nothing else.
"""

import json
import sys
from pathlib import Path


def row(out: Path) -> str:
    said = json.loads((out / "bundle" / "manifest.json").read_text())
    speed, metric = said["speedup"], said["metric"]
    bounds = f" [{speed['low']:.1f}, {speed['high']:.1f}]" if speed["low"] is not None else ""
    batch = said["candidate"]["by_batch"][-1]
    cells = (
        out.name,
        f"{said['model']['parameters'] / 1e6:.2f} M" if said["model"]["parameters"] else "",
        " + ".join(said["techniques"]) or "as it came",
        f"**{speed['value']:.1f}x**{bounds}",
        f"{batch['speedup']:.1f}x at {batch['batch']}",
        f"{said['size_ratio']:.1f}x",
        f"{metric['name']} {metric['baseline']:.4g}",
        f"{metric['drop_points']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}]",
        str(said["candidates_considered"]),
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    heads = ("run", "parameters", "chosen", "speedup, batch 1", "larger batch", "file smaller", "baseline",
             "drop on test, points", "candidates")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for out in map(Path, sys.argv[1:]):
        print(row(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
