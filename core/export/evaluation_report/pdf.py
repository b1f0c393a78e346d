"""Render a report as PDF (A4) with reportlab."""

import io
from pathlib import Path

import matplotlib
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    Flowable,
    Image,
    KeepTogether,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)
from reportlab.platypus import Paragraph as Words

from core.answers.diagnosis import RESEARCH_USE
from core.export.evaluation_report.blocks import (
    Block,
    Paragraph,
    Picture,
    Pictures,
    Report,
    Section,
    TableBlock,
)
from core.export.pdf_text import spell

_FONT, _BOLD = "DejaVuSans", "DejaVuSans-Bold"  # from matplotlib; also Greek, Cyrillic, symbols
_MARGIN = 18 * mm
_CHARACTER = 5.2  # points per character of a cell's text, a generous estimate
_WIDTH = A4[0] - 2 * _MARGIN
_TEXT = ParagraphStyle("text", fontName=_FONT, fontSize=9, leading=13, spaceAfter=5)
_SMALL = ParagraphStyle("small", parent=_TEXT, fontSize=7, leading=9, textColor="#5f6270")
_CELL = ParagraphStyle("cell", parent=_TEXT, fontSize=8, leading=10, spaceAfter=0)
_TITLE = ParagraphStyle("title", parent=_TEXT, fontName=_BOLD, fontSize=17, leading=22)
_HEAD = ParagraphStyle(
    "head", parent=_TEXT, fontName=_BOLD, fontSize=11.5, leading=15, spaceBefore=10
)
_NOTICE = ParagraphStyle(
    "notice", parent=_TEXT, backColor="#fdf1e2", borderPadding=4, spaceBefore=4, spaceAfter=8
)


def to_pdf(report: Report) -> bytes:
    """Render a report as PDF bytes."""
    _register_fonts()
    notice = RESEARCH_USE
    if report.is_synthetic:
        notice = f"SYNTHETIC: drawn images, no patients. {notice}"
    story: list[Flowable] = [
        Words(_spell(report.title), _TITLE),
        Words(_spell(report.subtitle), _TEXT),
        Words(_spell(notice), _NOTICE),
    ]
    for section in report.sections:
        story += _section(section)
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=report.title,
        author="NeighborDx",
    )
    document.build(story, onFirstPage=_number_page, onLaterPages=_number_page)
    return buffer.getvalue()


def _register_fonts() -> None:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (_FONT, _BOLD):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, str(folder / f"{name}.ttf")))


def _spell(text: str) -> str:
    return spell(text, font=_FONT)


def _number_page(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.setFont(_FONT, 7)
    canvas.setFillColor(colors.HexColor("#5f6270"))
    canvas.drawString(_MARGIN, 10 * mm, RESEARCH_USE)
    canvas.drawRightString(A4[0] - _MARGIN, 10 * mm, str(document.page))


def _section(section: Section) -> list[Flowable]:
    items = ", ".join(str(item) for item in section.items)
    note = f'  <font size="7" color="#5f6270">CLAIM {items}</font>' if items else ""
    head = Words(_spell(section.title) + note, _HEAD)
    blocks = [flowable for block in section.blocks for flowable in _block(block)]
    # never leave a heading alone at the foot of a page
    return [KeepTogether([head, *blocks[:1]]), *blocks[1:]]


def _block(block: Block) -> list[Flowable]:
    if isinstance(block, Paragraph):
        return [Words(_spell(block.text), _TEXT)]
    if isinstance(block, TableBlock):
        return [_table(block), Spacer(1, 5)]
    return [_pictures(block), Spacer(1, 4)]


def _table(block: TableBlock) -> Table:
    rows = [[Words(f"<b>{_spell(cell)}</b>", _CELL) for cell in block.header]]
    rows += [[Words(_spell(cell), _CELL) for cell in row] for row in block.rows]
    table = Table(rows, colWidths=_share_width(block), repeatRows=1, hAlign="LEFT")
    table.setStyle(
        TableStyle(
            [
                ("LINEBELOW", (0, 0), (-1, -1), 0.4, colors.HexColor("#d6d6e0")),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 2),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
    )
    return table


def _share_width(block: TableBlock) -> list[float]:
    """Column widths, by the longest cell and at least the longest word."""
    columns = list(zip(block.header, *block.rows, strict=True))
    bounded = [min(max(max(map(len, c)) + 3, 9), 60) for c in columns]  # plus padding
    scale = min(_WIDTH / sum(bounded), _CHARACTER)
    wanted = [n * scale for n in bounded]
    least = [
        min(max(len(word) for cell in c for word in (cell.split() or [""])) + 2, 24) * _CHARACTER
        for c in columns
    ]
    missing = sum(max(0.0, low - width) for low, width in zip(least, wanted, strict=True))
    spare = [max(0.0, width - low) for low, width in zip(least, wanted, strict=True)]
    share = min(1.0, missing / sum(spare)) if sum(spare) else 0.0
    widths = [
        max(low, width - share * room)
        for low, width, room in zip(least, wanted, spare, strict=True)
    ]
    return [width * min(1.0, _WIDTH / sum(widths)) for width in widths]


def _pictures(block: Pictures) -> Table:
    n_across = max(1, int(1 / max(picture.width_share for picture in block.pictures)))
    width = _WIDTH / n_across
    cells = [_picture(picture, width - 6) for picture in block.pictures]
    rows = [cells[i : i + n_across] for i in range(0, len(cells), n_across)]
    rows[-1] += [[] for _ in range(n_across - len(rows[-1]))]
    table = Table(rows, colWidths=[width] * n_across, hAlign="LEFT")
    table.setStyle(
        TableStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0)])
    )
    return table


def _picture(picture: Picture, width: float) -> list[Flowable]:
    pixels_w, pixels_h = ImageReader(io.BytesIO(picture.png)).getSize()
    image = Image(io.BytesIO(picture.png), width=width, height=width * pixels_h / pixels_w)
    return [image, Words(_spell(picture.caption), _SMALL)]
