"""Explore page: translated names of columns, values and lists."""

from pathlib import PurePosixPath

from pages._text import N_, _, class_label

_LONGEST_NAME = 20  # characters on a card

COLUMNS = {
    "label": N_("Label"),
    "split": N_("Split"),
    "prediction": N_("Leave-one-out answer"),
    "outcome": N_("Correct or not"),
    "confidence": N_("Confidence"),
    "purity": N_("Neighbours with the same label"),
    "vote": N_("Role in the vote"),
    "corrected": N_("Correction"),
    "source_class": N_("Source class"),
    "group": N_("Patient"),
}
VALUES = {
    "right": N_("correct"),
    "wrong": N_("wrong"),
    "votes": N_("votes"),
    "set aside": N_("excluded"),
    "as trained": N_("as in training"),
    "relabelled": N_("relabelled"),
    "looks on": N_("another split: never votes"),
    "train": N_("training"),
    "val": N_("validation"),
    "test": N_("test"),
    "": N_("unknown"),
}
LISTS = {
    "selection": N_("Selected images"),
    "similar": N_("Similar to one image"),
    "wrong": N_("Outvoted (leave-one-out)"),
    "suspects": N_("Suspect labels"),
    "duplicates": N_("Duplicates"),
    "outliers": N_("Outliers"),
    "mixed": N_("Mixed regions"),
    "history": N_("History"),
}
EXPLANATIONS = {
    "selection": N_("The images selected on the map, or all that pass the filter."),
    "similar": N_("Nearest in the embedding space, not on the map."),
    "wrong": N_("The other images outvote the label. The most confident of them come first."),
    "suspects": N_(
        "Two opinions that did not see the label doubt it: the vote of the other images, and a "
        "simple classifier on the untrained features. Look before you correct."
    ),
    "duplicates": N_(
        "Groups of images that show the same content. Groups with conflicting labels come first,"
        " then groups across splits."
    ),
    "outliers": N_("The {n} images least like all others to the untrained backbones, at most."),
    "mixed": N_("Regions where neighbours of both classes mix."),
    "history": N_("All changes to the gallery; any version can be restored."),
}


def column_label(name: str) -> str:
    """A column's heading; a manifest's own columns keep their names."""
    return _(COLUMNS[name]) if name in COLUMNS else name.replace("_", " ")


def value_label(value: str) -> str:
    """A value as shown."""
    return _(VALUES[value]) if value in VALUES else class_label(value)


def list_label(name: str) -> str:
    """A list's name."""
    return _(LISTS[name])


def short_name(key: str) -> str:
    """An image's file name, cut in the middle to fit on its card: both ends tell files apart."""
    name = PurePosixPath(key).name
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
