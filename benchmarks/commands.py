"""How long a person waits for the small commands: `--help` and `sql` on the demo's run, medians of ten.

python benchmarks/commands.py runs/demo
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMITS = {"--help": 0.4, "sql": 1.0, "status": 1.0}
"""Seconds that the project allows."""


def seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "prefdata.cli", *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    run = sys.argv[1]
    commands = {
        "--help": ("--help",),
        "sql": ("sql", run, "select sampler, scorer, avg(score) from answers group by all"),
        "status": ("status", run),
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(10):  # alternately, so that a busy moment is shared
        for name, arguments in commands.items():
            taken[name].append(seconds(*arguments))
    print("| command | median, s | limit, s |\n|---|--:|--:|")
    for name, times in taken.items():
        print(f"| prefdata {name} | {statistics.median(times):.2f} | {LIMITS[name]:.1f} |")


if __name__ == "__main__":
    main()
