"""Seconds from starting the app to its health check and to readiness (torch loaded).

    PYTHONPATH=. python benchmarks/bench_start.py --checkpoints checkpoints

Result: results/start.json, both times for every start.
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from statistics import median

import harness

PORT = 8791
ADDRESSES = {"health_s": "_stcore/health", "ready_s": "ready"}


def wait_for(address: str, app: "subprocess.Popen[bytes]") -> None:
    """Poll until the app responds."""
    while app.poll() is None:
        try:
            with urllib.request.urlopen(f"http://localhost:{PORT}/{address}", timeout=60):
                return
        except urllib.error.HTTPError as err:
            raise SystemExit(f"/{address} answered {err.code}: {err.read().decode()}") from err
        except urllib.error.URLError:
            time.sleep(0.02)
    raise SystemExit("the app ended; is the port taken?")


def start_once(checkpoints: Path) -> dict[str, float]:
    """Start the app once; return the seconds until each address responds."""
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(PORT)]
    environment = {**os.environ, "NEIGHBORDX_CHECKPOINTS": str(checkpoints)}
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as app:
        try:
            seconds = {}
            for name, address in ADDRESSES.items():
                wait_for(address, app)
                seconds[name] = round(time.perf_counter() - began, 2)
        finally:
            app.terminate()
    return seconds


def main() -> None:
    """Start the app a few times and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    starts = [start_once(options.checkpoints) for _ in range(options.starts)]
    middle = {name: median(start[name] for start in starts) for name in ADDRESSES}
    harness.write_result("start", {"starts": starts, "median": middle})
    print(middle)


if __name__ == "__main__":
    main()
