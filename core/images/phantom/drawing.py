"""Synthetic colour fundus images with lesion masks, for the demo and for tests.

Owns the drawing. One seed is one eye: the anatomy is the same with and without disease, which only
adds microaneurysms, haemorrhages and exudates. Every image is marked SYNTHETIC. To keep the task
from being trivial, healthy eyes have drusen-like specks, reflections and dust, and mild disease has
few, small lesions. Nothing here is derived from a patient's image.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.images.phantom.mark import MIN_SIZE, burn_in


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic eye."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.bool_]  # (H, W) where lesions are; all False in a healthy eye
    is_diseased: bool


@dataclass(frozen=True, eq=False)
class _Eye:
    """Positions of the anatomy, in pixels."""

    size: int
    centre: tuple[float, float]
    radius: float
    disc: tuple[float, float]
    disc_radius: float
    macula: tuple[float, float]


def draw(seed: int, *, is_diseased: bool, size: int = 384) -> Phantom:
    """Draw one eye.

    Args:
        seed: determines the image; the same seed with and without disease is the same eye.
        is_diseased: add lesions.
        size: side of the square image in pixels, at least 64.

    Raises:
        DataError: the size is too small to hold an eye.
    """
    if size < MIN_SIZE:
        raise DataError(f"a phantom needs at least {MIN_SIZE} px, got {size}.", code="phantom.size")
    rng = np.random.default_rng([seed, 0])
    eye = _place(rng, size)
    field = _field_of_view(eye)
    canvas = _paint_background(rng, eye)
    _paint_vessels(rng, eye, canvas)
    canvas = _paint_disc(rng, eye, canvas)
    _paint_specks(rng, eye, canvas)
    mask = np.zeros((size, size), dtype=bool)
    if is_diseased:
        canvas, mask = _paint_lesions(np.random.default_rng([seed, 1]), eye, canvas, field)
    pixels = _expose(rng, eye, canvas, field)
    burn_in(pixels)
    return Phantom(pixels, mask, is_diseased)


def _place(rng: np.random.Generator, size: int) -> _Eye:
    """Choose a left or right eye, slightly off centre."""
    side = rng.choice([-1.0, 1.0])
    centre = tuple(size / 2 + size * rng.uniform(-0.02, 0.02, 2))
    radius = size * rng.uniform(0.45, 0.48)
    disc = (
        centre[0] + side * radius * rng.uniform(0.48, 0.62),
        centre[1] + radius * rng.uniform(-0.1, 0.06),
    )
    macula = (
        centre[0] - side * radius * rng.uniform(0.02, 0.12),
        centre[1] + radius * rng.uniform(-0.02, 0.1),
    )
    return _Eye(
        size, (centre[0], centre[1]), radius, disc, radius * rng.uniform(0.15, 0.19), macula
    )


def _distance(eye: _Eye, point: tuple[float, float]) -> NDArray[np.float32]:
    y, x = np.mgrid[: eye.size, : eye.size].astype(np.float32)
    distance: NDArray[np.float32] = np.hypot(x - point[0], y - point[1]).astype(np.float32)
    return distance


def _field_of_view(eye: _Eye) -> NDArray[np.float32]:
    edge = (eye.radius - _distance(eye, eye.centre)) / (0.008 * eye.size)
    field: NDArray[np.float32] = np.clip(edge, 0, 1).astype(np.float32)
    return field


def _noise(rng: np.random.Generator, size: int, cell: int) -> NDArray[np.float32]:
    """Smooth noise, mean 0, about -1..1, with features of ``cell`` pixels."""
    n = max(2, size // max(1, cell))
    coarse = rng.standard_normal((n, n)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth / 2, dtype=np.float32)


def _paint_background(rng: np.random.Generator, eye: _Eye) -> NDArray[np.float32]:
    """Orange-red retina with choroidal texture, vignetting and the darker macula; (H, W, 3)."""
    base = np.array([0.78, 0.36, 0.14]) * rng.uniform(0.85, 1.1)
    base = base * (1 + rng.uniform(-0.12, 0.12, 3))
    texture = 0.05 * _noise(rng, eye.size, eye.size // 8)
    texture += 0.035 * _noise(rng, eye.size, max(2, eye.size // 40))
    texture += 0.02 * _noise(rng, eye.size, max(2, eye.size // 110))
    from_centre = _distance(eye, eye.centre) / eye.radius
    light = 1.08 - rng.uniform(0.2, 0.4) * from_centre**2 + texture
    macula = np.exp(-((_distance(eye, eye.macula) / (0.2 * eye.radius)) ** 2))
    fovea = np.exp(-((_distance(eye, eye.macula) / (0.06 * eye.radius)) ** 2))
    light = light * (1 - rng.uniform(0.2, 0.34) * macula - 0.1 * fovea)
    canvas = light[:, :, None] * base
    canvas[:, :, 1] *= 1 - 0.12 * macula
    return np.asarray(canvas, dtype=np.float32)


def _paint_vessels(rng: np.random.Generator, eye: _Eye, canvas: NDArray[np.float32]) -> None:
    """Paint arcades from the disc around the macula, with branches; veins darker and wider."""
    veins = np.zeros((eye.size, eye.size), dtype=np.float32)
    arteries = np.zeros_like(veins)
    side = math.copysign(1.0, eye.macula[0] - eye.disc[0])
    for layer, width in ((veins, 0.026), (arteries, 0.018)):
        for vertical in (-1.0, 1.0):
            angle = math.atan2(vertical * rng.uniform(0.9, 1.3), side * rng.uniform(0.25, 0.6))
            bend = -vertical * side * rng.uniform(0.009, 0.014)
            _grow(rng, eye, layer, eye.disc, angle, width * eye.radius, bend, depth=0)
            away = math.atan2(vertical * rng.uniform(0.5, 1.2), -side)
            _grow(rng, eye, layer, eye.disc, away, 0.7 * width * eye.radius, 0.0, depth=1)
            toward = math.atan2(vertical * rng.uniform(0.3, 0.5), side)
            _grow(rng, eye, layer, eye.disc, toward, 0.35 * width * eye.radius, 0.0, depth=2)
    for layer, colour, strength in (
        (veins, (0.60, 0.36, 0.36), 0.85),
        (arteries, (0.78, 0.50, 0.42), 0.8),
    ):
        alpha = strength * cv2.GaussianBlur(layer, (0, 0), 0.0022 * eye.size)[:, :, None]
        canvas *= 1 - alpha * (1 - np.array(colour, dtype=np.float32))


def _grow(
    rng: np.random.Generator,
    eye: _Eye,
    layer: NDArray[np.float32],
    start: tuple[float, float],
    angle: float,
    width: float,
    bend: float,
    *,
    depth: int,
) -> None:
    """Walk one vessel across the field, drawing it and its branches."""
    x, y = start
    step = 0.022 * eye.radius
    until_branch = int(rng.integers(8, 16))
    wobble = 0.0
    for _ in range(110):
        wobble = 0.8 * wobble + rng.normal(0, 0.035)
        angle += 3.2 * bend + wobble
        nx, ny = x + step * math.cos(angle), y + step * math.sin(angle)
        near_macula = math.hypot(nx - eye.macula[0], ny - eye.macula[1]) < 0.2 * eye.radius
        outside = math.hypot(nx - eye.centre[0], ny - eye.centre[1]) > eye.radius
        if outside or (near_macula and depth > 0) or width < 0.0035 * eye.radius:
            return
        ends = [tuple(round(16 * v) for v in p) for p in ((x, y), (nx, ny))]
        cv2.line(layer, ends[0], ends[1], 1.0, max(1, round(width)), cv2.LINE_AA, 4)
        x, y, width = nx, ny, width * 0.987
        until_branch -= 1
        if until_branch <= 0 and depth < 4:
            turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.45, 0.9)
            _grow(rng, eye, layer, (x, y), angle + turn, 0.62 * width, bend / 3, depth=depth + 1)
            angle -= 0.2 * turn
            until_branch = int(rng.integers(7, 15))


def _paint_disc(
    rng: np.random.Generator, eye: _Eye, canvas: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Bright optic disc with a paler cup; vessels stay visible over it."""
    y, x = np.mgrid[: eye.size, : eye.size].astype(np.float32)
    tilt = rng.uniform(0.88, 0.98)
    reach = np.hypot((x - eye.disc[0]) / tilt, y - eye.disc[1]) / eye.disc_radius
    disc = 1 / (1 + np.exp((reach - 1) * 14))
    cup = 1 / (1 + np.exp((reach - rng.uniform(0.3, 0.5)) * 12))
    vessel_dark = canvas.mean(2) / (
        cv2.GaussianBlur(canvas.mean(2), (0, 0), 0.03 * eye.size) + 1e-6
    )
    shade = np.clip(vessel_dark, 0.5, 1.05)[:, :, None]
    colour = np.array([0.98, 0.74, 0.42]) + cup[:, :, None] * np.array([0.02, 0.14, 0.24])
    mixed = canvas * (1 - 0.9 * disc[:, :, None]) + 0.9 * disc[:, :, None] * colour * shade
    return np.asarray(mixed, dtype=np.float32)


def _blob(
    rng: np.random.Generator, size: int, point: tuple[float, float], radius: float, *, rough: float
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """A soft irregular spot: the window of the image it covers, and its strength 0..1."""
    reach = int(2.2 * radius) + 3
    left, top = max(0, int(point[0]) - reach), max(0, int(point[1]) - reach)
    window = (
        slice(top, min(size, top + 2 * reach + 1)),
        slice(left, min(size, left + 2 * reach + 1)),
    )
    y, x = np.mgrid[window].astype(np.float32)
    dx, dy = x - point[0], y - point[1]
    theta = np.arctan2(dy, dx)
    outline = np.ones_like(theta)
    for n in (2, 3, 5):
        outline += rough / n * rng.normal() * np.cos(n * theta + rng.uniform(0, 2 * math.pi))
    strength = 1 / (1 + np.exp((np.hypot(dx, dy) / (radius * outline.clip(0.4)) - 1) * 6))
    return window, np.asarray(strength, dtype=np.float32)


def _random_place(rng: np.random.Generator, eye: _Eye) -> tuple[float, float]:
    """A random position on the retina, off the disc."""
    while True:
        angle, reach = rng.uniform(0, 2 * math.pi), eye.radius * 0.85 * math.sqrt(rng.uniform(0, 1))
        point = eye.centre[0] + reach * math.cos(angle), eye.centre[1] + reach * math.sin(angle)
        if math.hypot(point[0] - eye.disc[0], point[1] - eye.disc[1]) > 1.5 * eye.disc_radius:
            return point


def _paint_specks(
    rng: np.random.Generator,
    eye: _Eye,
    canvas: NDArray[np.float32],
) -> None:
    """Paint what healthy eyes also have: drusen-like pale specks, dust, a reflection."""
    for _ in range(int(rng.poisson(5))):
        radius = eye.size * rng.uniform(0.003, 0.007)
        window, spot = _blob(rng, eye.size, _random_place(rng, eye), radius, rough=0.2)
        canvas[window] += (rng.uniform(0.03, 0.1) * spot)[:, :, None] * np.array([1, 0.9, 0.5])
    for _ in range(int(rng.poisson(3))):
        radius = eye.size * rng.uniform(0.002, 0.005)
        window, spot = _blob(rng, eye.size, _random_place(rng, eye), radius, rough=0.3)
        canvas[window] *= 1 - (rng.uniform(0.08, 0.25) * spot)[:, :, None]
    if rng.random() < 0.35:
        window, spot = _blob(
            rng, eye.size, _random_place(rng, eye), eye.size * rng.uniform(0.03, 0.07), rough=0.5
        )
        canvas[window] += (rng.uniform(0.02, 0.06) * spot)[:, :, None]


def _paint_lesions(
    rng: np.random.Generator,
    eye: _Eye,
    canvas: NDArray[np.float32],
    field: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Microaneurysms, haemorrhages and hard exudates; from a few dots to many."""
    canvas, covered = canvas.copy(), np.zeros(canvas.shape[:2], dtype=np.float32)
    severity = rng.beta(1.3, 2.2)
    dark = np.array([0.55, 0.28, 0.32], dtype=np.float32)

    def stain(radii: tuple[float, float], strength: float, rough: float) -> None:
        point, radius = _random_place(rng, eye), eye.size * rng.uniform(*radii)
        window, spot = _blob(rng, eye.size, point, radius, rough=rough)
        canvas[window] *= 1 - (strength * spot)[:, :, None] * (1 - dark)
        covered[window] = np.maximum(covered[window], spot)

    for _ in range(3 + int(rng.poisson(22 * severity))):
        stain((0.003, 0.006), rng.uniform(0.5, 1), 0.2)
    for _ in range(int(rng.poisson(1 + 7 * severity))):
        stain((0.008, 0.022), rng.uniform(0.6, 1), 0.7)
    for _ in range(int(rng.poisson(0.5 + 3.5 * severity))):
        middle = _random_place(rng, eye)
        for _ in range(int(rng.integers(3, 16))):
            offset = rng.normal(0, 0.03 * eye.size, 2)
            point = middle[0] + float(offset[0]), middle[1] + float(offset[1])
            if math.hypot(point[0] - eye.centre[0], point[1] - eye.centre[1]) > 0.9 * eye.radius:
                continue
            radius = eye.size * rng.uniform(0.003, 0.009)
            window, spot = _blob(rng, eye.size, point, radius, rough=0.5)
            alpha = (rng.uniform(0.5, 0.9) * spot)[:, :, None]
            canvas[window] = canvas[window] * (1 - alpha) + alpha * np.array([1.0, 0.85, 0.42])
            covered[window] = np.maximum(covered[window], spot)
    return canvas, (covered * field) > 0.3


def _expose(
    rng: np.random.Generator,
    eye: _Eye,
    canvas: NDArray[np.float32],
    field: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Simulate the camera: uneven light, focus, colour balance, sensor noise, black border."""
    y, x = np.mgrid[: eye.size, : eye.size].astype(np.float32) / eye.size - 0.5
    tilt = 1 + rng.uniform(-0.25, 0.25) * x + rng.uniform(-0.25, 0.25) * y
    seen = canvas * tilt[:, :, None] * rng.uniform(0.8, 1.12)
    seen = cv2.GaussianBlur(seen, (0, 0), eye.size * rng.uniform(0.0008, 0.0024))
    seen = np.clip(seen, 0, 1) ** rng.uniform(0.85, 1.2)
    seen = seen * field[:, :, None]
    seen += rng.normal(0, rng.uniform(0.006, 0.018), seen.shape)
    return np.asarray(np.clip(seen * 255, 0, 255), dtype=np.uint8)
