"""Answers as JSON and CSV, in the form read by other programs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.answers.diagnosis import RESEARCH_USE, Diagnosis
from core.export.tables import defuse


def to_json(
    diagnosis: Diagnosis, *, heatmap_files: Mapping[str, str] | None = None
) -> dict[str, object]:
    """Return the agreed plain-JSON form (DESIGN section 4); numbers rounded to 6 places.

    The format includes the more probable class and the probabilities even if the model abstained;
    then ``answer`` is null.

    Args:
        diagnosis: one answer.
        heatmap_files: backbone name -> file, if heatmaps were saved.
    """
    novelty = diagnosis.novelty
    return {
        "file": diagnosis.file,
        "status": diagnosis.status,
        "answer": diagnosis.answer,
        "predicted_class": diagnosis.predicted_class,
        "probabilities": _rounded(diagnosis.probabilities),
        "vote_shares": _rounded(diagnosis.vote_shares),
        "neighbours": [
            {
                "rank": n.rank,
                "file": n.key,
                "label": n.class_name,
                "distance": round(n.distance, 6),
                "weight": round(n.weight, 6),
                "share": round(n.share, 6),
            }
            for n in diagnosis.neighbours
        ],
        "nearest": None
        if diagnosis.nearest is None
        else {
            "file": diagnosis.nearest.key,
            "label": diagnosis.nearest.class_name,
            "distance": round(diagnosis.nearest.distance, 6),
        },
        "left_out": [{"file": n.key, "reason": n.reason} for n in diagnosis.left_out],
        "members": [
            {
                "model_id": m.model_id,
                "probabilities": _rounded(m.probabilities),
                "weight": round(m.weight, 6),
            }
            for m in diagnosis.members
        ],
        "novelty": None
        if novelty is None
        else {
            "distance_percentile": round(novelty.distance_percentile, 3),
            "is_novel": novelty.is_novel,
        },
        "abstain_reason": diagnosis.abstain_reason,
        "has_close_case": diagnosis.has_close_case,
        "view_probabilities": [round(p, 6) for p in diagnosis.view_probabilities],
        "heatmaps": dict(heatmap_files or {}),
        "frame": diagnosis.frame,
        "n_frames": diagnosis.n_frames,
        "window": diagnosis.window,
        "is_inverted": diagnosis.is_inverted,
        "burned_in_text": bool(diagnosis.burned_in),
        "synthetic_mark": diagnosis.has_synthetic_mark,
        "reader": None
        if diagnosis.reader is None
        else {
            "class": diagnosis.reader.class_name,
            "confidence": diagnosis.reader.confidence,
            "created": diagnosis.reader.created,
            "before_answer": diagnosis.reader.is_before_answer,
        },
        "model_id": diagnosis.model_id,
        "data_id": diagnosis.data_id,
        "model_identity": diagnosis.model_identity,
        "created": diagnosis.created,
        "software_version": diagnosis.software,
        "notice": RESEARCH_USE,
        "error": diagnosis.error,
        "notices": [{"code": n.code, "text": n.text} for n in diagnosis.notices],
    }


def dump_json(diagnoses: Sequence[Diagnosis]) -> str:
    """Return the whole list as indented JSON text."""
    return json.dumps([to_json(d) for d in diagnoses], indent=2, ensure_ascii=False)


def to_csv(diagnoses: Sequence[Diagnosis]) -> str:
    """Return the worklist table of some answers; see ``write_csv``."""
    classes = {name for d in diagnoses for name in d.probabilities}
    return write_csv(map(to_json, diagnoses), classes)


def write_csv(rows: Iterable[Mapping[str, Any]], class_names: Iterable[str]) -> str:
    """Write rows of ``to_json`` as a table; cells that could run as formulas are defused.

    It matches the screen: no class without an answer, no probability for a novel image.
    """
    classes = sorted(class_names)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(map(defuse, [*_COLUMNS[:3], *(f"p_{c}" for c in classes), *_COLUMNS[3:]]))
    for row in rows:
        shown = {} if row["abstain_reason"] == "novel" else row["probabilities"]
        shares = [f"{shown[c]:.4f}" if c in shown else "" for c in classes]
        cells = _list_cells(row)
        writer.writerow(map(defuse, [*cells[:3], *shares, *cells[3:]]))
    return out.getvalue()


_COLUMNS = (
    *("file", "status", "predicted_class"),
    *("distance_percentile", "is_novel", "nearest_file", "nearest_distance", "model_id"),
    *("data_id", "created", "reader_class", "reader_confidence", "error", "notice"),
    *("abstain_reason", "frame_number", "n_frames"),  # frame number as in DICOM, from 1
    *("window_centre", "window_width", "is_inverted", "reader_before_answer"),
    *("software_version", "notices", "model_identity"),
)


def _list_cells(row: Mapping[str, Any]) -> list[object]:
    """The cells of a row in the order of the columns."""
    novelty, nearest, reader = row["novelty"], row["nearest"], row["reader"]
    cells: list[object] = [row["file"], row["status"], row["answer"] or ""]
    cells += [f"{novelty['distance_percentile']:.1f}", novelty["is_novel"]] if novelty else ["", ""]
    cells += [nearest["file"], f"{nearest['distance']:.4f}"] if nearest else ["", ""]
    cells += [row["model_id"], row["data_id"], row["created"]]
    cells += [reader["class"], f"{reader['confidence']:.2f}"] if reader else ["", ""]
    cells += [row["error"] or "", row["notice"], row["abstain_reason"] or ""]
    if row["status"] == "rejected":
        cells += [""] * 5
    else:
        cells += [row["frame"] + 1, row["n_frames"], *(row["window"] or ("", ""))]
        cells.append(row["is_inverted"])
    cells += [reader["before_answer"] if reader else "", row["software_version"]]
    notices = " ".join(notice["text"] for notice in row["notices"])
    return [*cells, notices, row["model_identity"]]


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in values.items()}
