"""Read saved ablations.

Owns their location: ``ablation*.json`` in the checkpoints folder and in
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
_NEEDED = ("data_name", "preset", "n_seeds", "created", "summary")


@dataclass(frozen=True)
class Ablation:
    """The results table of one ablation."""

    name: str  # file name without suffix
    data_name: str
    preset: str  # with any overrides
    n_seeds: int
    created: str
    summary: tuple[Mapping[str, Any], ...]  # rows of ``ablation.run_ablation``
    tests: tuple[Mapping[str, Any], ...]


def list_ablations(checkpoints_dir: Path, results: Path = _RESULTS) -> list[Ablation]:
    """Every readable ablation file, newest first; unreadable files are skipped."""
    found = {}
    for folder in (results, checkpoints_dir):
        for path in sorted(folder.glob("ablation*.json")) if folder.is_dir() else []:
            ablation = _read(path)
            if ablation is not None:
                found[ablation.name] = ablation
    return sorted(found.values(), key=lambda ablation: ablation.created, reverse=True)


def _read(path: Path) -> Ablation | None:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(raw, dict) or any(key not in raw for key in _NEEDED):
        return None
    return Ablation(
        name=path.stem,
        data_name=str(raw["data_name"]),
        preset=" ".join(str(part) for part in (raw["preset"], *raw.get("overrides", ()))),
        n_seeds=int(raw["n_seeds"]),
        created=str(raw["created"]),
        summary=tuple(raw["summary"]),
        tests=tuple(raw.get("tests", ())),
    )
