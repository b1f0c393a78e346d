"""Text for PDFs: escaped for reportlab, in a font that has the characters.

Only characters that the text's own font lacks are set in the reader's Chinese font (STSong-Light,
not embedded); a viewer without it leaves them blank.
"""

import itertools
from xml.sax.saxutils import escape

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont

_CHINESE = "STSong-Light"
_BUILT_IN = frozenset(bytes(range(256)).decode("cp1252", "ignore"))  # characters of those fonts


def spell(text: str, *, font: str) -> str:
    """Convert text to paragraph markup that displays it unchanged.

    Args:
        text: in any script; ``<`` and ``&`` are escaped.
        font: registered name of the font that the paragraph is set in.
    """
    if _CHINESE not in pdfmetrics.getRegisteredFontNames():
        pdfmetrics.registerFont(UnicodeCIDFont(_CHINESE))
    drawn = pdfmetrics.getFont(font)

    def has(letter: str) -> bool:
        if isinstance(drawn, TTFont):
            return ord(letter) in drawn.face.charToGlyph
        return letter in _BUILT_IN

    runs = [(known, escape("".join(run))) for known, run in itertools.groupby(text, has)]
    return "".join(run if known else f'<font name="{_CHINESE}">{run}</font>' for known, run in runs)
