"""What was decided about a data folder, why, and how to change it, as sentences.

The templates here are the only ones: commands print them, pages translate them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["said", "warning", "question"]


def N_(text: str) -> str:  # noqa: N802 - marks a template for the translation catalogue
    return text


_SENTENCES: dict[str, str] = {
    "layout.folders": N_("The folders say what each image is."),
    "layout.table": N_("The table {name} says what each image is ({columns})."),
    "layout.npz": N_("{name} holds the images: it has the arrays of MedMNIST."),
    "wrapper": N_("The data lie in {name}, the only folder."),
    "splits": N_("Splits: {found}. Their names say so."),
    "splits.both": N_("Splits: {found}. Their names say so, and they hold the same classes."),
    "splits.below": N_("Splits: {found}, inside every class folder."),
    "splits.folds": N_("{found} are folds for cross-validation: {name} is validation."),
    "splits.drawn": N_("There is no validation split: one is drawn from the training images."),
    "disease.said": N_("“{disease}” is the disease and “{normal}” is not, because you said so."),
    "disease.model": N_(
        "“{disease}” is the disease and “{normal}” is not, because the model was trained so."
    ),
    "disease.normal": N_(
        "“{disease}” is the disease, because “{normal}” says that nothing was found."
    ),
    "disease.opposite": N_("“{disease}” is the disease, because “{normal}” is its negation."),
    "disease.malignant": N_("“{disease}” is the disease: “{normal}” is the benign class."),
    "disease.word": N_("“{disease}” is the disease: its name says so."),
    "disease.against": N_(
        "You said that “{disease}” is the disease, but its name reads like the class without one."
    ),
    "disease.ask": N_("Which class is the disease? The names {found} do not say it for sure."),
    "classes.number": N_(
        "Exactly two classes are needed; found {n}: {found}. Give several folders one class name, "
        "or leave folders out."
    ),
    "classes.merged": N_("{found} are one class, “{name}”."),
    "masks.folders": N_("Masks, not images: {n} files in the folders {names}."),
    "masks.files": N_("Masks of the image of the same name: {n}, such as {example}."),
    "masks.copies": N_(
        "Left out: {n} named like masks but looking like pictures, such as {example}."
    ),
    "levels": N_("{names}: folders that every class has are not patients."),
    "kinds": N_("{names} are kinds of “{class_name}”, not patients: few folders, many images."),
    "patients.table": N_("Patients: {n}, from the table's column {name}."),
    "patients.folders": N_("Patients: {n}, from the folders inside the classes ({example})."),
    "patients.files": N_("Patients: {n}, from the file names ({example})."),
    "patients.dicom": N_("Patients: {n}, from the DICOM PatientID, of which only a hash is kept."),
    "patients.proposed": N_(
        "The file names may hold patient numbers ({example}); these are not used unless you say so."
    ),
    "patients.none": N_(
        "Nothing tells which images are of the same patient: one patient may be in training and "
        "in validation."
    ),
    "left.system": N_("Left out: {n} in folders of the system ({names})."),
    "left.skipped": N_("Left out: {n} in folders that you named ({names})."),
    "left.kinds": N_("Left out: {n} whose names are not those of images ({names})."),
    "left.outside": N_("Left out: {n} outside the class folders, such as {example}."),
    "names.bytes": N_(
        "File names that are not UTF-8, shown with backslashes: {n}, such as {example}."
    ),
}
_KINDS: dict[str, Kind] = {
    "disease.ask": "question",
    "classes.number": "question",
    "disease.against": "warning",
    "masks.copies": "warning",
    "kinds": "warning",
    "patients.proposed": "warning",
    "patients.none": "warning",
    "left.outside": "warning",
}
_OPTIONS: dict[str, str] = {
    "layout": "--layout",
    "wrapper": "--data",
    "splits": "--folder NAME=train|val|test|class",
    "disease": "--disease-class NAME",
    "classes": "--class FOUND=NAME",
    "masks.folders": "--folder NAME=class|kind|masks|skip",
    "masks": "--no-mask-files",
    "levels": "--folder NAME=patient",
    "kinds": "--folder NAME=patient",
    "patients": "--patients auto|none|folder|dicom|PATTERN",
    "left.system": "--folder NAME=class|kind|patient",
    "left.skipped": "--folder NAME=class|kind|patient",
}


@dataclass(frozen=True)
class Decision:
    """One thing decided, or a question that only a person can answer."""

    code: str
    params: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """Whether it is only said, needs a look, or stops everything until it is answered."""
        return _KINDS.get(self.code, "said")

    @property
    def option(self) -> str:
        """The command-line option that changes it; empty if there is none."""
        return _OPTIONS.get(self.code, _OPTIONS.get(self.code.partition(".")[0], ""))

    @property
    def template(self) -> str:
        """The sentence before its parameters are filled in, for translation."""
        return _SENTENCES[self.code]

    @property
    def sentence(self) -> str:
        """The English sentence."""
        return self.template.format(**self.params)

    def to_json(self) -> dict[str, object]:
        """Plain JSON."""
        return {
            "code": self.code,
            "kind": self.kind,
            "params": dict(self.params),
            "sentence": self.sentence,
            "option": self.option,
        }


def join(names: object, *, most: int = 4) -> str:
    """Some names for a sentence, sorted, in quotes; the rest as a number."""
    listed = sorted(map(str, names))  # type: ignore[call-overload]
    shown = ", ".join(f"“{name}”" for name in listed[:most])
    return shown if len(listed) <= most else f"{shown} … ({len(listed)})"
