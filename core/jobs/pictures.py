"""Thumbnails that a job saves for the page to show with its findings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data.datasets import Dataset, load_record
from core.data.readiness import Finding
from core.errors import ImageError
from core.images.decode import encode_jpeg, thumbnail

_N_SAMPLES = 6  # per class
_N_GROUPS = 6  # per finding
_N_IN_GROUP = 4


def save_pictures(
    dataset: Dataset, findings: Sequence[Finding], folder: Path
) -> dict[str, dict[str, Any]]:
    """Write thumbnails of the images to review.

    Args:
        dataset: the audited data.
        findings: with the groups of images they refer to.
        folder: for the thumbnails.

    Returns:
        ``samples``: class -> keys of a few of its images; ``pictures``: key -> file in the folder;
        ``labels``: key -> its split and class, for the first seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = {record.key: record for record in dataset.records}
    samples = {
        name: [r.key for r in dataset.subset("train") if r.label == label][:_N_SAMPLES]
        for label, name in enumerate(dataset.class_names)
    }
    wanted = [key for keys in samples.values() for key in keys]
    for finding in findings:
        for group in finding.keys[:_N_GROUPS]:
            wanted += group[:_N_IN_GROUP]
    pictures: dict[str, str] = {}
    for key in dict.fromkeys(wanted):
        try:
            pixels = load_record(records[key]).pixels
        except ImageError:  # the audit lists it as unreadable
            continue
        pictures[key] = f"{len(pictures):04d}.jpg"
        (folder / pictures[key]).write_bytes(encode_jpeg(thumbnail(pixels)))
    labels = {
        key: [records[key].split, dataset.class_names[records[key].label]] for key in pictures
    }
    return {"samples": samples, "pictures": pictures, "labels": labels}
