"""The marker segments of a JPEG or JPEG-LS codestream, and where its coded data end.

The decoders fill in what is missing: a frame that was cut off is decoded to a picture whose lost
part is invented. Owns finding such frames: without an end-of-image marker, or with coded data that
end early.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_END, SCAN, _JPEG_LS_FRAME = 0xD9, 0xDA, 0xF7
_RESTARTS = range(0xD0, 0xD8)
_ALONE = {0x01, 0xD8, *_RESTARTS}  # markers without a segment
# Start-of-frame markers: C0..CF without tables (C4), extensions (C8) and conditioning (CC); and
# F7 of JPEG-LS.
FRAME_MARKERS = {_JPEG_LS_FRAME, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_DCT = (0xC0, 0xC1)
_ARITHMETIC = range(0xC9, 0xD0)
_LAST_COEFFICIENT = 63
_MARKER = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_MARKER_IN_LS = re.compile(rb"\xff+[\x80-\xfe]", re.DOTALL)  # after FF, JPEG-LS data begin with 0
_FILLING = bytes(np.random.default_rng(10918).integers(0, 255, 96, dtype=np.uint8))


@dataclass(frozen=True)
class Segment:
    """One marker segment."""

    marker: int
    begin: int  # of its content, after the length
    content: bytes
    data_ends: tuple[int, ...] = ()  # of the coded data that follow, one per restart interval


@dataclass(frozen=True)
class Segments:
    """The segments up to the end of the image, or up to where the bytes end."""

    found: tuple[Segment, ...]
    is_ended: bool  # by an end-of-image marker

    @property
    def frame(self) -> Segment | None:
        """The start-of-frame segment."""
        return next((s for s in self.found if s.marker in FRAME_MARKERS), None)

    @property
    def scan(self) -> Segment | None:
        """The first scan's header."""
        return next((s for s in self.found if s.marker == SCAN), None)


def list_segments(frame: bytes) -> Segments:
    """List the segments of a JPEG or JPEG-LS frame, without decoding it."""
    found: list[Segment] = []
    pattern, position = _MARKER, 2
    while (match := pattern.search(frame, position)) is not None:
        marker, position = frame[match.end() - 1], match.end()
        if marker == _END:
            return Segments(tuple(found), is_ended=True)
        if marker in _ALONE:
            continue
        length = int.from_bytes(frame[position : position + 2], "big")
        begin, position = position + 2, position + max(2, length)
        ends: tuple[int, ...] = ()
        if marker == _JPEG_LS_FRAME:
            pattern = _MARKER_IN_LS
        elif marker == SCAN:
            ends = _find_data_ends(frame, position, pattern)
        found.append(Segment(marker, begin, frame[begin:position], ends))
        position = ends[-1] if ends else position
    return Segments(tuple(found), is_ended=False)


def _find_data_ends(frame: bytes, begin: int, pattern: re.Pattern[bytes]) -> tuple[int, ...]:
    """Where coded data end: before each restart marker and before the next other marker."""
    ends = []
    for match in pattern.finditer(frame, begin):
        ends.append(match.start())
        if frame[match.end() - 1] not in _RESTARTS:
            break
    return tuple(ends)


def fill_scans(frame: bytes, segments: Segments) -> bytes | None:
    """Insert noise behind the coded data of every scan and restart interval.

    A decoder that had all the data it needs never reads it and gives the same picture; one that
    ran out of data gives another. None if that cannot be said (arithmetic coding, which omits zeros
    at the end).
    """
    header = segments.frame
    if header is None or header.marker in _ARITHMETIC:
        return None
    ends = [end for segment in segments.found for end in segment.data_ends]
    return b"".join(_insert(frame, ends))


def _insert(frame: bytes, places: Sequence[int]) -> list[bytes]:
    pieces, begin = [], 0
    for place in places:
        pieces += [frame[begin:place], _FILLING]
        begin = place
    return [*pieces, frame[begin:]]


def mend_scan_header(frame: bytes, segments: Segments) -> bytes:
    """Correct a sequential scan said to end at coefficient 0 instead of 63, as some encoders write.

    A sequential scan holds all coefficients (ITU-T T.81, table B.3).
    """
    header, scan = segments.frame, segments.scan
    if header is None or scan is None or header.marker not in _SEQUENTIAL_DCT:
        return frame
    mended = bytearray(frame)
    for segment in segments.found:
        if segment.marker != SCAN or len(segment.content) < 6:
            continue
        first, last = segment.content[-3:-1]
        if first == 0 and last == 0:
            mended[segment.begin + len(segment.content) - 2] = _LAST_COEFFICIENT
    return bytes(mended)
