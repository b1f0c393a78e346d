"""Whether a JPEG holds every scan and restart interval that its picture needs.

A file that was cut between two of them and given an end-of-image marker has no data that end
early; only counting shows that some are missing. Arithmetic per ITU-T T.81, A.1 and A.2.
"""

import struct
from dataclasses import dataclass

from core.images.jpeg_segments import SCAN, Segment, Segments

_RESTART_INTERVAL = 0xDD
_LOSSLESS, _PROGRESSIVE, _JPEG_LS = (0xC3, 0xC7, 0xCB, 0xCF), (0xC2, 0xC6, 0xCA, 0xCE), 0xF7
_N_COEFFICIENTS = 64


@dataclass(frozen=True)
class _Frame:
    marker: int
    height: int
    width: int
    factors: dict[int, tuple[int, int]]  # component -> horizontal and vertical sampling

    @property
    def unit(self) -> int:
        """Side of a data unit in samples."""
        return 1 if self.marker in _LOSSLESS else 8


def has_all_scans(segments: Segments) -> bool:
    """Whether every component is coded completely, in full restart intervals.

    Of JPEG-LS, only that every component has a scan: its decoder checks the rest.
    """
    header = segments.frame
    frame = None if header is None else _read_frame(header)
    if frame is None:
        return False
    coded: dict[int, set[int]] = {component: set() for component in frame.factors}
    interval = 0
    for segment in segments.found:
        if segment.marker == _RESTART_INTERVAL and len(segment.content) >= 2:
            (interval,) = struct.unpack(">H", segment.content[:2])
        if segment.marker != SCAN:
            continue
        components, coefficients = _read_scan(segment, frame)
        for component in components:
            coded.get(component, set()).update(coefficients)
        if interval and frame.marker != _JPEG_LS:
            n_units = _count_units(frame, components)
            if len(segment.data_ends) < -(-n_units // interval):
                return False
    needed = _N_COEFFICIENTS if frame.marker in _PROGRESSIVE else 1
    return all(len(done) >= needed for done in coded.values())


def _read_frame(header: Segment) -> _Frame | None:
    content = header.content
    if len(content) < 6 or len(content) < 6 + 3 * content[5]:
        return None
    _, height, width, n_components = struct.unpack(">BHHB", content[:6])
    triples = [content[6 + 3 * i : 9 + 3 * i] for i in range(n_components)]
    factors = {component: (both >> 4 or 1, both & 15 or 1) for component, both, _ in triples}
    return _Frame(header.marker, height, width, factors)


def _read_scan(scan: Segment, frame: _Frame) -> tuple[list[int], range]:
    """The components of a scan, and the coefficients that it completes (0 stands for all)."""
    content = scan.content
    n_components = content[0] if content else 0
    if len(content) < 4 + 2 * n_components:
        return [], range(0)
    components = list(content[1 : 1 + 2 * n_components : 2])
    if frame.marker not in _PROGRESSIVE:
        return components, range(1)
    first, last, bits = content[1 + 2 * n_components : 4 + 2 * n_components]
    is_final = bits & 15 == 0  # no bits are left for a later scan
    return components, range(first, min(last + 1, _N_COEFFICIENTS)) if is_final else range(0)


def _count_units(frame: _Frame, components: list[int]) -> int:
    """The number of coding units in a scan."""
    most_h = max(h for h, _ in frame.factors.values())
    most_v = max(v for _, v in frame.factors.values())
    if len(components) == 1:
        h, v = frame.factors.get(components[0], (most_h, most_v))
        width, height = -(-frame.width * h // most_h), -(-frame.height * v // most_v)
        return -(-width // frame.unit) * -(-height // frame.unit)
    return -(-frame.width // (frame.unit * most_h)) * -(-frame.height // (frame.unit * most_v))
