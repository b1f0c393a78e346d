"""A run is locked by its process; whoever comes second is told which process, and since when."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.config import RunConfig, Settings
from core.data.datasets import Dataset
from core.errors import JobError
from core.files.locks import hold_run
from core.training.run import train

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from core.files.locks import hold_run
with hold_run(Path(sys.argv[1]), called="it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_of_two_trainings_is_told_who_trains_and_not_to_delete_anything(
    tmp_path: Path, phantom_dataset: Dataset, tiny_config: RunConfig
) -> None:
    folder = tmp_path / "ck" / ".runs" / "x"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    settings = Settings(tmp_path / "ck", device="cpu")
    command = [sys.executable, "-c", HOLD, str(folder)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(JobError) as caught:
                train(phantom_dataset, tiny_config, name="x", settings=settings, resume=resume)
            assert f"model 'x' is being trained by process {first.pid} since 2" in str(caught.value)
            assert "delete" not in str(caught.value)
            assert caught.value.code == "job.busy"
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    with pytest.raises(JobError, match="no process is training in it") as caught:
        train(phantom_dataset, tiny_config, name="x", settings=settings)
    assert caught.value.code == "job.interrupted"


@pytest.mark.parametrize("text", ["{", "{}", '{"process": {"pid": 1}, "since": "now"}', "[]"])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path, text: str) -> None:
    with hold_run(tmp_path, called="it"):
        (tmp_path / "holder.json").write_text(text, encoding="utf-8")
        with (
            pytest.raises(JobError, match="it is being trained by another process"),
            hold_run(tmp_path, called="it"),
        ):
            pass


def test_a_holder_of_before_is_not_named(tmp_path: Path) -> None:
    """The one who holds it now has not written its name yet."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    told = {"process": {"pid": ended.pid, "started": time.time()}, "since": "2026-01-01T00:00:00"}
    with hold_run(tmp_path, called="it"):
        (tmp_path / "holder.json").write_text(json.dumps(told), encoding="utf-8")
        with (
            pytest.raises(JobError, match="by another process"),
            hold_run(tmp_path, called="it"),
        ):
            pass
