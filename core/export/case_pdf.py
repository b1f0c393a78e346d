"""One case as a PDF: image, answer, vote, heatmaps and provenance.

A novel image has no answer, so its PDF shows no evidence for one: no vote, no heatmap, and no
calibration of the model on its own kind of images.

Owns the layout (reportlab). Written in English, like all of core; names in other scripts go through
core.export.pdf_text.
"""

import io
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table

from core.answers.diagnosis import RESEARCH_USE, Diagnosis, Novelty, write_percent
from core.answers.reliability import describe_reliability
from core.answers.scrutiny import Scrutiny
from core.errors import ImageError
from core.explanations.grad_cam import overlay, resize_heatmap
from core.explanations.methods import METHODS
from core.export.pdf_text import spell
from core.images.decode import encode_jpeg, thumbnail
from core.models.ensemble import Model

_WIDTH = A4[0] - 36 * mm
_FONT = "Helvetica"  # as in the sample styles
_N_CASES = 10  # shown with images; the JSON has the whole ledger
_PICTURE_PX = 700
_GREY = colors.HexColor("#666666")
_ORANGE = colors.HexColor("#e07b00")
_BLUE = colors.HexColor("#3f86d6")


def build_pdf(
    model: Model, diagnosis: Diagnosis, *, scrutiny: Scrutiny | None = None, opacity: float = 0.6
) -> bytes:
    """Lay a case out on A4.

    Args:
        model: the model that produced the diagnosis.
        diagnosis: with pixels.
        scrutiny: heatmaps with their tests. Without it, the predicted class's heatmaps are drawn
            and reported as not tested.
        opacity: of the heatmaps, 0..1.

    Raises:
        ImageError: the case was rejected.
    """
    if diagnosis.status == "rejected" or diagnosis.pixels is None:
        raise ImageError(
            "a file that was not read has no answer to report; choose another case.",
            code="export.rejected",
        )
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=20 * mm,
        bottomMargin=18 * mm,
        title=f"NeighborDx: {diagnosis.file}",
        author="NeighborDx",
        subject=RESEARCH_USE,
    )
    story = [
        *_write_head(diagnosis),
        *_write_answer(model, diagnosis),
        *_draw_pictures(diagnosis, scrutiny, opacity=opacity),
        *_write_ledger(model, diagnosis),
        *([] if _is_refused(diagnosis) else _write_members(diagnosis)),
        *_write_provenance(model, diagnosis),
    ]
    document.build(story, onFirstPage=_mark_page, onLaterPages=_mark_page)
    return buffer.getvalue()


def _is_refused(diagnosis: Diagnosis) -> bool:
    return diagnosis.abstain_reason == "novel"


def _mark_page(canvas: Canvas, document: SimpleDocTemplate) -> None:
    """Draw the research notice on every page."""
    canvas.saveState()
    canvas.setFont("Helvetica-Bold", 9)
    canvas.setFillColor(_ORANGE)
    canvas.drawString(18 * mm, A4[1] - 13 * mm, RESEARCH_USE)
    canvas.setFillColor(_GREY)
    canvas.setFont("Helvetica", 8)
    canvas.drawRightString(A4[0] - 18 * mm, A4[1] - 13 * mm, f"NeighborDx, page {document.page}")
    canvas.restoreState()


def _style(name: str = "BodyText", **changes: object) -> ParagraphStyle:
    return ParagraphStyle("x", parent=getSampleStyleSheet()[name], **changes)


def _say(text: str, *, style: ParagraphStyle | None = None) -> Paragraph:
    """Build a paragraph; ``text`` may contain reportlab tags, so names must go through _spell."""
    return Paragraph(text, style or _style(spaceBefore=0, spaceAfter=2))


def _spell(text: str) -> str:
    return spell(text, font=_FONT)


def _percent(share: float) -> str:
    return escape(write_percent(share))


def _write_head(diagnosis: Diagnosis) -> list[Flowable]:
    of = f"{diagnosis.frame + 1} of {diagnosis.n_frames}"
    frame = f", frame {of}" if diagnosis.n_frames > 1 else ""
    return [
        _say(f"{_spell(diagnosis.file)}{frame}", style=_style("Heading2", spaceBefore=0)),
        _say(f"Read {diagnosis.created} by model <b>{_spell(diagnosis.model_id)}</b>"),
    ]


def _write_answer(model: Model, diagnosis: Diagnosis) -> list[Flowable]:
    lines = []
    if diagnosis.reader is not None:
        reader = diagnosis.reader
        when = (
            "before the answer was shown"
            if reader.is_before_answer
            else "AFTER the answer was shown"
        )
        lines.append(
            f"The reader, {when}: <b>{_spell(reader.class_name)}</b>, "
            f"{_percent(reader.confidence)} sure ({reader.created})."
        )
    if _is_refused(diagnosis):
        head, colour = "No answer: this is not the kind of image this model knows", _GREY
    elif diagnosis.abstain_reason == "uncertain":
        head, colour = "No answer: too close to call", _GREY
    else:
        is_disease = diagnosis.predicted_class == diagnosis.disease_class
        mark = "Answer"
        head, colour = f"{mark}: {diagnosis.predicted_class}", _ORANGE if is_disease else _BLUE
    if not _is_refused(diagnosis):
        lines += _write_probability(model, diagnosis)
    if diagnosis.novelty is not None:
        lines.append(_describe_novelty(diagnosis.novelty))
    if diagnosis.neighbours and not diagnosis.has_close_case:
        lines.append("<b>No close case</b>: even the nearest training image is not alike.")
    if diagnosis.burned_in:
        lines.append("The picture seems to hold burned-in text: check it for names.")
    lines += [_spell(notice.text) for notice in diagnosis.notices]
    title = _style("Heading1", textColor=colour, spaceBefore=2, spaceAfter=4)
    return [_say(_spell(head), style=title), *(_say(line) for line in lines), Spacer(1, 3 * mm)]


def _describe_novelty(novelty: Novelty) -> str:
    if not novelty.is_beyond_all:
        share = _percent(novelty.distance_percentile / 100)
        return f"More unusual than {share} of the training images."
    if novelty.is_novel:
        return "More unusual than any training image."
    return (
        "<b>More unusual than any training image</b>, though within the limit: take the answer "
        "with caution."
    )


def _write_probability(model: Model, diagnosis: Diagnosis) -> list[str]:
    parts = ", ".join(
        f"{_spell(c)} <b>{_percent(p)}</b>" for c, p in diagnosis.probabilities.items()
    )
    lines = [f"Calibrated probability: {parts}."]
    known = describe_reliability(model)
    if known is not None:
        shares = ", ".join(
            f"{_percent(c.accuracy)} at {_percent(c.share)} coverage" for c in known.coverage
        )
        lines.append(
            f"On {known.n} validation images these probabilities are off by {known.ece:.1%} on "
            f"average{'' if known.is_held_out else ' (calibrated on these very images)'}; right "
            f"there: {shares}."
        )
    return lines


def _picture(pixels: NDArray[np.uint8], *, width: float, height: float) -> Image:
    """An image that fits a box, in points."""
    shown = thumbnail(pixels, max_px=_PICTURE_PX)
    factor = min(width / shown.shape[1], height / shown.shape[0])
    data = io.BytesIO(encode_jpeg(shown))
    return Image(data, width=shown.shape[1] * factor, height=shown.shape[0] * factor)


def _draw_pictures(
    diagnosis: Diagnosis, scrutiny: Scrutiny | None, *, opacity: float
) -> list[Flowable]:
    assert diagnosis.pixels is not None
    pixels = diagnosis.pixels
    leading = diagnosis.predicted_class
    if _is_refused(diagnosis):
        scrutiny, leading = None, None
    heatmaps = scrutiny.maps if scrutiny else [m for m in diagnosis.maps if m.class_name == leading]
    n = len(heatmaps) + 1
    box = {"width": _WIDTH / n - 3 * mm, "height": 70 * mm}
    row: list[Flowable] = [_picture(pixels, **box)]
    captions = [_say("The image that was read", style=_style(fontSize=8, leading=10))]
    for heatmap in heatmaps:
        fine = resize_heatmap(heatmap.values, height=pixels.shape[0], width=pixels.shape[1])
        row.append(_picture(overlay(pixels, fine, opacity=opacity), **box))
        text = f"Heatmap for {_spell(heatmap.class_name)}, seen by {_spell(heatmap.backbone)}"
        text += f" ({METHODS[heatmap.method].name}). {_describe_test(scrutiny, heatmap.backbone)}"
        captions.append(_say(text, style=_style(fontSize=8, leading=10)))
    table = Table(
        [row, captions], colWidths=[_WIDTH / n] * n, style=[("VALIGN", (0, 0), (-1, -1), "TOP")]
    )
    after: list[Flowable] = []
    if scrutiny is not None and scrutiny.map_agreement is not None:
        after.append(_say(f"Rank correlation of the two maps: {scrutiny.map_agreement:+.2f}."))
    return [table, *after, Spacer(1, 2 * mm)]


def _describe_test(scrutiny: Scrutiny | None, backbone: str) -> str:
    if scrutiny is None or backbone not in scrutiny.by_backbone:
        return "Not tested on this image."
    test = scrutiny.by_backbone[backbone].test
    verdict = (
        "Better than chance here"
        if test.is_better_than_random
        else "<b>No better than chance here</b>"
    )
    return (
        f"{verdict}: deletion {test.deletion:.2f}, insertion {test.insertion:.2f}, "
        f"chance {test.deletion_random:.2f}."
    )


def _write_ledger(model: Model, diagnosis: Diagnosis) -> list[Flowable]:
    if not diagnosis.neighbours:
        return []
    small = _style(fontSize=8, leading=10)
    is_refused = _is_refused(diagnosis)
    cells: list[Sequence[object]] = [
        ["", "rank", "label", "distance", "weight", "share", "training image"]
    ]
    for neighbour in diagnosis.neighbours[:_N_CASES]:
        cells.append(
            [
                _picture(model.thumbnail(neighbour.index), width=11 * mm, height=11 * mm),
                str(neighbour.rank),
                _say(_spell(neighbour.class_name), style=small),
                f"{neighbour.distance:.4f}",
                "-" if is_refused else f"{neighbour.weight:.2f}",
                f"{neighbour.share:.1%}" if neighbour.share > 0 and not is_refused else "-",
                _say(_spell(neighbour.key), style=small),
            ]
        )
    sums = ", ".join(f"{_spell(c)} {_percent(p)}" for c, p in diagnosis.vote_shares.items())
    n_more = len(diagnosis.neighbours) - _N_CASES
    has_vote = sums and not is_refused
    notes = [f"Vote of all {diagnosis.k}: {sums}." if has_vote else "These images did not vote."]
    if n_more > 0:
        notes.append(f"{n_more} more are in the JSON export.")
    if diagnosis.left_out:
        notes.append(f"{len(diagnosis.left_out)} related images (copies, same patient) left out.")
    widths = [14 * mm, 11 * mm, 24 * mm, 19 * mm, 17 * mm, 16 * mm]
    title = (
        "What the model would have compared it with" if is_refused else "Nearest training images"
    )
    return [
        _say(title, style=_style("Heading3")),
        _say(" ".join(notes)),
        _lay_table(cells, [*widths, _WIDTH - sum(widths)]),
    ]


def _lay_table(cells: Sequence[Sequence[object]], widths: Sequence[float]) -> Table:
    return Table(
        cells,
        colWidths=widths,
        repeatRows=1,
        style=[
            ("FONTSIZE", (0, 0), (-1, -1), 8),
            ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ("LINEBELOW", (0, 0), (-1, 0), 0.5, _GREY),
            ("TOPPADDING", (0, 0), (-1, -1), 1),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
        ],
    )


def _write_members(diagnosis: Diagnosis) -> list[Flowable]:
    if len(diagnosis.members) < 2:
        return []
    small = _style(fontSize=8, leading=10)
    cells: list[Sequence[object]] = [
        ["model", _say(f"probability of {_spell(diagnosis.disease_class)}", style=small), "weight"]
    ]
    for member in diagnosis.members:
        p = member.probabilities[diagnosis.disease_class]
        cells.append([member.model_id, write_percent(p), f"{member.weight:.3f}"])
    verdict = "All lean the same way." if diagnosis.members_agree else "They disagree."
    return [
        _say("Each model's vote", style=_style("Heading3")),
        _say(verdict),
        _lay_table(cells, [60 * mm, 60 * mm, 30 * mm]),
    ]


def _write_provenance(model: Model, diagnosis: Diagnosis) -> list[Flowable]:
    facts: Mapping[str, str] = {
        "Model": f"{diagnosis.model_name}, made {model.created}",
        "Training data": diagnosis.data_id,
        "Read": diagnosis.created,
        "Software": f"NeighborDx {diagnosis.software}",
        "Shown": _describe_display(diagnosis),
    }
    lines = "<br/>".join(f"{name}: {_spell(value)}" for name, value in facts.items() if value)
    return [
        Spacer(1, 3 * mm),
        _say(lines, style=_style(fontSize=8, leading=11, textColor=_GREY)),
        _say(f"<b>{RESEARCH_USE}</b>"),
    ]


def _describe_display(diagnosis: Diagnosis) -> str:
    parts = []
    if diagnosis.window is not None:
        parts.append(f"window centre {diagnosis.window[0]:g}, width {diagnosis.window[1]:g}")
    if diagnosis.is_inverted:
        parts.append("inverted")
    return ", ".join(parts)
