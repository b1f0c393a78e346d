"""Training metrics while a run is going: JSON lines for the page, event files for TensorBoard.

Owns both files in the job's folder. A line truncated by a kill is skipped when read; a step that
was repeated after a resume counts once.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

_FILE = "metrics.jsonl"
_FOLDER = "tensorboard"


class MetricsWriter:
    """Writes the records of ``core.training.live_metrics``."""

    def __init__(self, folder: Path, *, member: str = "") -> None:
        """Open the files.

        Args:
            folder: of the job.
            member: the model being trained, if the job trains several.
        """
        self._member = member
        self._path = folder / _FILE
        self._board = SummaryWriter(str(folder / _FOLDER / member), write_to_disk=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record."""
        record = {**record, "member": self._member}
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
        step = int(record["step"])
        for name in ("loss", "spread", "separation", "active", "adapter_lr", "tail_lr"):
            self._board.add_scalar(f"train/{name}", record[name], step)
        validation = record.get("validation")
        if validation:
            for name in ("accuracy", "auroc", "spread"):
                self._board.add_scalar(f"validation/{name}", validation[name], step)
            for score in validation["k_scores"]:
                self._board.add_scalar(f"validation_k/{score['k']}", score["accuracy"], step)
        self._board.flush()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the most recently trained model, in order of steps.

    Empty if there are none yet.
    """
    try:
        lines = (folder / _FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    by_step: dict[float, dict[str, Any]] = {}
    member = ""
    for line in lines:
        try:
            record = json.loads(line)
            step = float(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        if record.get("member", "") != member:
            member, by_step = record["member"], {}
        by_step[step] = record
    return [by_step[step] for step in sorted(by_step)]


def read_log(folder: Path, *, n_lines: int = 20) -> list[str]:
    """Read the last lines of a job's log, from its last 32 KB."""
    try:
        with (folder / "log.txt").open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - 32_768))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-n_lines:]
