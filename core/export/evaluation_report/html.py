"""Render a report as a single self-contained HTML file."""

import base64
from html import escape

from core.answers.diagnosis import RESEARCH_USE
from core.export.evaluation_report.blocks import (
    Block,
    Paragraph,
    Pictures,
    Report,
    Section,
    TableBlock,
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d1d27; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2rem;
  border-bottom: 1px solid #d6d6e0; padding-bottom: .2rem; }
.items { font-size: .8rem; font-weight: normal; color: #5f6270; }
.notice { border-left: 4px solid #e07b00; background: #fdf1e2; padding: .4rem .9rem; }
table { border-collapse: collapse; margin: .8rem 0; } th, td { text-align: left;
  padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e4e4ec; vertical-align: top; }
figure { display: inline-block; margin: .4rem .6rem .4rem 0; vertical-align: top; }
figure img { width: 100%; } figcaption { font-size: .8rem; color: #5f6270; }
@media print { body { margin: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def to_html(report: Report) -> str:
    """Render a report with embedded images; nothing is fetched."""
    notice = RESEARCH_USE
    if report.is_synthetic:
        notice = f"SYNTHETIC: drawn images, no patients. {notice}"
    sections = "\n".join(_section(section) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(report.title)}</h1>\n<p>{escape(report.subtitle)}</p>\n"
        f'<p class="notice">{escape(notice)}</p>\n{sections}\n</body></html>\n'
    )


def _section(section: Section) -> str:
    items = ", ".join(str(item) for item in section.items)
    note = f' <span class="items">CLAIM {items}</span>' if items else ""
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<h2>{escape(section.title)}{note}</h2>\n{blocks}"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, TableBlock):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in block.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in block.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _pictures(block)


def _pictures(block: Pictures) -> str:
    figures = [
        f'<figure style="width: {picture.width_share * 100:.0f}%">'
        f'<img alt="{escape(picture.caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        for picture in block.pictures
    ]
    return f"<div>{''.join(figures)}</div>"
