"""The corrections of a gallery that travel with a model: written to its file, taken from it.

Owns the rule that an import never changes the answers of a model that was here before, and the
sentence that says what became of the corrections.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import Settings, build_record
from core.errors import ConfigError
from core.gallery.corrections import Version
from core.gallery.corrections_db import CurationStore, Merge, default_url


@dataclass(frozen=True)
class Corrections:
    """What became of the corrections of one training set that came with a model."""

    data_id: str
    n_versions: int  # in the file
    n_here: int  # afterwards
    outcome: Merge

    def __str__(self) -> str:
        """What the imported model answers with, in a sentence."""
        told = f"corrections of the gallery ({self.data_id}): "
        if self.outcome in ("added", "same"):
            return f"{told}version {self.n_here} came with the model and is in use."
        if self.outcome == "newer":
            return (
                f"{told}the model came with version {self.n_versions} and answers here with version"
                f" {self.n_here}, which continues it."
            )
        return (
            f"{told}those in the file (version {self.n_versions}) differ from those here (version "
            f"{self.n_here}) and were not taken: the model answers here with the ones here. Roll "
            "the gallery back here, or import into another folder of models."
        )


def _open_corrections(directory: Path, settings: Settings) -> CurationStore:
    return CurationStore(settings.database_url or default_url(directory))


def read_corrections(
    directory: Path, data_ids: Sequence[str], settings: Settings
) -> dict[str, list[dict[str, object]]]:
    """The history of every gallery that was corrected, by training data id."""
    store = _open_corrections(directory, settings)
    try:
        found = {data_id: store.read_history(data_id) for data_id in data_ids}
    finally:
        store.close()
    return {
        data_id: [v.to_json() for v in history] for data_id, history in found.items() if history
    }


def parse_corrections(told: Any, known: Collection[str]) -> dict[str, list[Version]]:
    """Read the histories in a file.

    Args:
        told: by training data id, as ``read_corrections`` returned them.
        known: training data of the models in the file.

    Raises:
        ConfigError: they cannot be read, or belong to other data.
    """
    if not isinstance(told, dict) or not all(isinstance(h, list) for h in told.values()):
        raise ConfigError("the corrections are no histories by data.", code="archive.corrections")
    if not told.keys() <= set(known):
        raise ConfigError("the corrections are of other data.", code="archive.corrections")
    histories = {
        data_id: [build_record(Version, entry, "corrections") for entry in history]
        for data_id, history in told.items()
    }
    for history in histories.values():
        if [version.number for version in history] != list(range(1, len(history) + 1)):
            raise ConfigError(
                "the corrections are no whole history, numbered from 1.", code="archive.corrections"
            )
    return histories


def add_corrections(
    directory: Path,
    histories: Mapping[str, Sequence[Version]],
    settings: Settings,
    *,
    taken: Collection[str],
) -> tuple[Corrections, ...]:
    """Add the histories, unless that would change the answers of a model that was here before.

    Args:
        directory: the checkpoints folder.
        histories: by training data id.
        settings: name the database.
        taken: training data of the models that were here before.
    """
    if not histories:
        return ()
    store = _open_corrections(directory, settings)
    try:
        return tuple(
            Corrections(
                data_id=data_id,
                n_versions=len(history),
                outcome=store.add_history(data_id, history, may_add=data_id not in taken),
                n_here=store.read_version(data_id),
            )
            for data_id, history in histories.items()
        )
    finally:
        store.close()
