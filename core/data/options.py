"""What a person may say about a data folder: one option for each decision of the plan."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from core.config import build_record
from core.errors import ConfigError, DataError
from core.files.names import read_path

Role = Literal["train", "val", "test", "class", "kind", "patient", "masks", "skip"]
Layout = Literal["auto", "folders", "table", "npz"]
ROLES: tuple[str, ...] = get_args(Role)
LAYOUTS: tuple[str, ...] = get_args(Layout)
PATIENTS = ("auto", "none", "folder", "dicom")


@dataclass(frozen=True)
class DataOptions:
    """How to read a data folder; what is left at its default is decided with a reason."""

    disease_class: str | None = None
    layout: Layout = "auto"
    folders: tuple[tuple[str, Role], ...] = ()  # name or path of a folder, what it is
    classes: tuple[tuple[str, str], ...] = ()  # name found, name of its class
    patients: str = "auto"  # one of PATIENTS, or a pattern with one group for file names
    mask_files: Literal["auto", "none"] = "auto"  # whether x_mask.png beside x.png is a mask

    def __post_init__(self) -> None:
        if self.patients not in PATIENTS:
            compile_pattern(self.patients)

    def role_of(self, name: str, key: str) -> Role | None:
        """What a folder was said to be, by its name or its path."""
        return next((role for said, role in self.folders if said in (name, key)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, only what differs from the defaults."""
        plain = DataOptions()
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(plain, f.name)
        }


@dataclass(frozen=True)
class TrainingData:
    """What a model remembers of its training data, for reading data for that model."""

    disease_class: str
    root: str = ""
    options: DataOptions = DataOptions()

    def is_at(self, root: Path) -> bool:
        """Whether it lay in this folder."""
        return bool(self.root) and read_path(self.root) == root.resolve()


def read_options(raw: Mapping[str, Any]) -> DataOptions:
    """Rebuild options from their JSON.

    Raises:
        ConfigError: an option is unknown or has no such value.
    """
    return build_record(DataOptions, dict(raw), "data options")


def parse_options(
    *,
    disease_class: str | None = None,
    layout: str = "auto",
    folders: Sequence[str] = (),
    classes: Sequence[str] = (),
    patients: str = "auto",
    mask_files: bool = True,
) -> DataOptions:
    """Build options from a command line.

    Args:
        disease_class: the positive class.
        layout: one of LAYOUTS.
        folders: ``NAME=ROLE`` with a role of ROLES; a name may contain "=".
        classes: ``FOUND=NAME``; the found name may not contain "=".
        patients: one of PATIENTS, or a pattern.
        mask_files: whether files named like masks are masks.

    Raises:
        ConfigError: a text has not this form.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout!r}: expected one of {', '.join(LAYOUTS)}.")
    roles = []
    for text in folders:
        name, is_pair, role = text.rpartition("=")
        if not is_pair or not name or role not in ROLES:
            raise ConfigError(
                f"--folder {text!r}: expected NAME=ROLE with a role of {', '.join(ROLES)}."
            )
        roles.append((name.rstrip("/"), role))
    renamed = []
    for text in classes:
        found, is_pair, name = text.partition("=")
        if not is_pair or not found or not name:
            raise ConfigError(f"--class {text!r}: expected FOUND=NAME.")
        renamed.append((found, name))
    return DataOptions(
        disease_class=disease_class,
        layout=layout,  # type: ignore[arg-type]
        folders=tuple(roles),  # type: ignore[arg-type]
        classes=tuple(renamed),
        patients=patients,
        mask_files="auto" if mask_files else "none",
    )


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern of patients in file names.

    Raises:
        DataError: it is no regular expression with exactly one group.
    """
    try:
        pattern = re.compile(text)
    except re.error as err:
        raise _refuse_pattern(text, str(err)) from err
    if pattern.groups != 1:
        raise _refuse_pattern(text, f"it has {pattern.groups} groups")
    return pattern


def _refuse_pattern(text: str, why: str) -> DataError:
    return DataError(
        f"--patients {text!r}: {why}; expected one of {', '.join(PATIENTS)}, or a regular "
        "expression with one group, such as '(person\\d+)_'.",
        code="data.pattern",
        params={"reason": why},
    )


def choose_options(
    options: DataOptions | None, root: Path, model: TrainingData | None
) -> DataOptions:
    """Options given, else those of the model's own data, else none."""
    if options is not None and options != DataOptions():
        return options
    return model.options if model is not None and model.is_at(root) else DataOptions()
