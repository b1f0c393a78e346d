"""Run every speed benchmark in turn, on an idle machine, until time is up.

They are ordered by importance; those not reached within --minutes keep their earlier result file.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    """Run them and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True, help="holds the demo")
    parser.add_argument("--models", type=Path, help="holds models whose test sets are compared")
    parser.add_argument("--parity", nargs="*", default=[], help="their names")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=12.0)
    options = parser.parse_args()
    demo = ["--checkpoints", str(options.checkpoints)]
    runs = [
        ["bench_diagnose.py", "--preset", "offline", *demo],
        ["bench_knn.py"],
        ["bench_diagnose.py", "--preset", "paper"],
        ["bench_finetune.py"],
        ["bench_scale.py", *demo],
    ]
    if options.parity:
        parity = ["--models", *options.parity, "--data", str(options.data)]
        runs.append(["bench_parity.py", "--checkpoints", str(options.models), *parity])
    began = time.monotonic()
    for script, *arguments in runs:
        if time.monotonic() - began > options.minutes * 60.0:
            print(f"no time left for {script}")
            continue
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(FOLDER / script), *arguments], check=False)
        print(f"{script} {' '.join(arguments)}: rc {done.returncode}, ", end="")
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
