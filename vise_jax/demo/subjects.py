"""Subjects of the demo corpus: one per topic, drawn as shapes with a random pose and random colors."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import ImageDraw

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Palette:
    """The colors of one scene, each `(red, green, blue)` in 0 to 255."""

    sky: Color
    ground: Color
    body: Color
    accent: Color
    ink: Color
    paper: Color


@dataclasses.dataclass(frozen=True)
class Pen:
    """Draws shapes given in a subject's own coordinates, where it fills about [-1, 1] x [-1, 1] and y points down."""

    draw: ImageDraw.ImageDraw
    to_pixels: np.ndarray  # [2, 3]
    unit: float  # pixels in one unit of length
    jag: float  # height of the teeth on outlines, in units
    wave: float  # height of the waves on outlines, in units

    def shape(self, points: np.ndarray, fill: Color, outline: Color | None = None) -> None:
        """Fill a closed outline, points [N, 2]."""
        pixels = self._pixels(_ruffle(points, self.jag, self.wave))
        self.draw.polygon(pixels, fill=fill)
        if outline is not None:
            self.draw.line([*pixels, pixels[0]], fill=outline, width=max(1, round(0.045 * self.unit)))

    def line(self, points: np.ndarray, color: Color, width: float) -> None:
        """Draw an open line through points [N, 2], `width` units wide."""
        self.draw.line(self._pixels(points), fill=color, width=max(1, round(width * self.unit)), joint="curve")

    def _pixels(self, points: np.ndarray) -> list[tuple[float, float]]:
        return [(x, y) for x, y in (points @ self.to_pixels[:, :2].T + self.to_pixels[:, 2]).tolist()]


def ellipse(x: float, y: float, width: float, height: float, start: float = 0, end: float = 360) -> np.ndarray:
    """Return points [N, 2] of an arc with half-axes `width` and `height`, angles in degrees, clockwise."""
    angles = np.radians(np.linspace(start, end, 33 if end - start > 90 else 13))
    return np.stack([x + width * np.cos(angles), y + height * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def path(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def curve(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """Return points [12, 2] of a quadratic Bezier curve."""
    t = np.linspace(0, 1, 12)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)


def _ruffle(points: np.ndarray, jag: float, wave: float) -> np.ndarray:
    """Return a closed outline [N, 2] with teeth or waves; small shapes don't change."""
    size = np.ptp(points, axis=0).max()
    if size < 0.3 or not (jag or wave):
        return points
    closed = np.concatenate([points, points[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    count = max(12, int(along[-1] / 0.11) // 2 * 2)
    at = np.linspace(0, along[-1], count, endpoint=False)
    dense = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    tangent = np.roll(dense, -1, axis=0) - np.roll(dense, 1, axis=0)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1) / (np.hypot(*tangent.T)[:, None] + 1e-9)
    teeth = jag * np.where(np.arange(count) % 2, 1.0, -1.0) + wave * np.sin(at * 2 * math.pi / 0.66)
    return dense + normal * teeth[:, None]


def _cat(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    if rng.random() < 0.65:
        tail = rng.choice([-1, 1])
        pen.line(curve((0.4 * tail, 0.8), (1.3 * tail, 0.9), (rng.uniform(0.7, 1.1) * tail, -0.1)), p.body, 0.17)
        pen.shape(ellipse(0, 0.52, 0.52, 0.56), p.body, p.ink)
        for side in (-1, 1):
            pen.shape(ellipse(0.2 * side, 0.98, 0.17, 0.1), p.body, p.ink)
        x, y, size = rng.uniform(-0.15, 0.15), -0.35, 0.5
    else:
        x, y, size = 0.0, 0.1, 0.9
    for side in (-1, 1):
        ear = path((0.95, -0.15), (0.98, -1.3), (0.2, -0.75)) * (size * side, size) + (x, y)
        pen.shape(ear, p.body, p.ink)
    pen.shape(ellipse(x, y, size, 0.85 * size), p.body, p.ink)
    for side in (-1, 1):
        pen.shape(ellipse(x + 0.4 * size * side, y - 0.1 * size, 0.2 * size, 0.2 * size), p.paper)
        pen.shape(ellipse(x + 0.4 * size * side, y - 0.1 * size, 0.07 * size, 0.19 * size), p.ink)
        for slope in (-0.15, 0.0, 0.15):
            whisker = path((0.3, 0.35), (1.25, 0.3 + slope * 2)) * (size * side, size) + (x, y)
            pen.line(whisker, p.ink, 0.035)
    pen.shape(path((-0.12, 0.2), (0.12, 0.2), (0, 0.36)) * size + (x, y), p.accent)


def _dog(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    if rng.random() < 0.35:
        pen.shape(ellipse(0, 0, 0.62, 0.75), p.body, p.ink)
        for side in (-1, 1):
            pen.shape(ellipse(0.66 * side, 0.1, 0.24, 0.65), p.accent, p.ink)
            pen.shape(ellipse(0.25 * side, -0.2, 0.1, 0.1), p.ink)
        pen.shape(ellipse(0, 0.4, 0.36, 0.32), p.paper, p.ink)
        pen.shape(ellipse(0, 0.24, 0.16, 0.11), p.ink)
        pen.shape(ellipse(0.05, 0.75, 0.13, 0.22), p.accent, p.ink)
        return
    pen.line(curve((-0.65, 0), (-0.95, -0.1), (-1.05, rng.uniform(-0.7, -0.3))), p.body, 0.13)
    for x in (-0.52, -0.3, 0.3, 0.5):
        pen.line(path((x, 0.2), (x + rng.uniform(-0.12, 0.12), 0.95)), p.body, 0.17)
    pen.shape(ellipse(-0.05, 0.05, 0.7, 0.32), p.body, p.ink)
    pen.shape(path((0.35, 0), (0.5, -0.5), (0.85, -0.35), (0.65, 0.15)), p.body)
    pen.shape(ellipse(0.7, -0.45, 0.32, 0.28), p.body, p.ink)
    pen.shape(ellipse(1.0, -0.36, 0.27, 0.15), p.body, p.ink)
    pen.shape(ellipse(1.2, -0.42, 0.09, 0.08), p.ink)
    pen.shape(ellipse(0.5, -0.35, 0.14, 0.34), p.accent, p.ink)
    pen.shape(ellipse(0.8, -0.54, 0.06, 0.06), p.ink)
    pen.line(path((0.4, -0.1), (0.72, 0.0)), p.accent, 0.1)


def _pizza(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    if rng.random() < 0.3:
        pen.shape(path((-0.75, -0.7), (0.75, -0.7), (0, 1.05)), p.accent, p.ink)
        pen.shape(ellipse(0, -0.72, 0.85, 0.2), p.body, p.ink)
        for x, y in ((-0.3, -0.35), (0.3, -0.3), (0.0, 0.05), (0.05, 0.5)):
            pen.shape(ellipse(x, y, 0.14, 0.14), p.ink)
        return
    pen.shape(ellipse(0, 0, 1.12, 1.12), p.paper)
    pen.shape(ellipse(0, 0, 0.96, 0.96), p.body, p.ink)
    pen.shape(ellipse(0, 0, 0.8, 0.8), p.accent)
    slices, turn = int(rng.choice([6, 8])), rng.uniform(0, 360)
    for index in range(slices):
        for radius, offset in ((0.55, 0.5), (0.33, rng.uniform(0.3, 0.7))):
            angle = math.radians(turn + 360 * (index + offset) / slices)
            pen.shape(ellipse(radius * math.cos(angle), radius * math.sin(angle), 0.11, 0.11), p.ink)
        angle = math.radians(turn + 360 * index / slices)
        pen.line(path((0, 0), (0.96 * math.cos(angle), 0.96 * math.sin(angle))), p.ink, 0.035)
    if rng.random() < 0.5:
        wedge = np.concatenate([path((0, 0)), ellipse(0, 0, 1.0, 1.0, turn, turn + 360 / slices)])
        pen.shape(wedge, p.paper)


def _car(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    pen.shape(box(-5, 0.52, 5, 0.95), p.ground)
    for x in np.arange(-5.0, 5.0):
        pen.line(path((x, 0.75), (x + 0.5, 0.75)), p.paper, 0.05)
    roof = rng.uniform(0.45, 0.6)
    if rng.random() < 0.6:
        cabin = path((-0.72, -0.02), (-0.42, -roof), (0.3, -roof), (0.66, -0.02))
    else:
        cabin = path((-1.0, -0.02), (-0.96, -roof - 0.1), (0.45, -roof - 0.1), (0.72, -0.02))
    pen.shape(cabin, p.body, p.ink)
    pen.shape(path((-1.08, 0.42), (-1.06, 0.0), (0.7, -0.04), (1.1, 0.12), (1.12, 0.42)), p.body, p.ink)
    glass = (cabin - (-0.03, -0.25)) * (0.78, 0.68) + (-0.03, -0.22)
    pen.shape(glass, p.paper)
    pen.line(path((-0.04, -roof), (-0.04, 0.35)), p.ink, 0.04)
    pen.shape(ellipse(1.03, 0.15, 0.08, 0.07), p.accent)
    for x in (-0.6, 0.62):
        pen.shape(ellipse(x, 0.45, 0.26, 0.26), p.ink)
        pen.shape(ellipse(x, 0.45, 0.12, 0.12), p.paper)


def _football(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    side = rng.choice([-1, 1])
    left, right, top = -0.7 + 0.6 * side, 1.1 + 0.6 * side, rng.uniform(-1.2, -0.8)
    pen.shape(box(-5, 0.55, 5, 5), p.ground)
    for x in np.linspace(left, right, 8):
        pen.line(path((x, top), (x, 0.55)), p.paper, 0.025)
    for y in np.linspace(top, 0.55, 6):
        pen.line(path((left, y), (right, y)), p.paper, 0.025)
    pen.line(path((left, 0.6), (left, top), (right, top), (right, 0.6)), p.paper, 0.1)
    x, y, radius = rng.uniform(-0.5, 0.2) * side, rng.uniform(0.2, 0.5), rng.uniform(0.45, 0.65)
    turn = rng.uniform(0, 72)
    pen.shape(ellipse(x, y, radius, radius), p.paper, p.ink)

    def at(angle: float, distance: float) -> tuple[float, float]:
        radians = math.radians(turn + angle)
        return x + radius * distance * math.cos(radians), y + radius * distance * math.sin(radians)

    pen.shape(path(*(at(72 * k, 0.36) for k in range(5))), p.ink)
    for k in range(5):
        pen.line(path(at(72 * k, 0.36), at(72 * k, 0.72)), p.ink, 0.045)
        pen.shape(path(at(72 * k - 22, 0.95), at(72 * k, 0.68), at(72 * k + 22, 0.95)), p.ink)


def _beach(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    sun = rng.uniform(-0.7, 0.7)
    pen.shape(ellipse(sun, 0.1, 0.45, 0.45), p.accent, p.paper)
    pen.shape(box(-5, 0.1, 5, 5), p.body)
    for y in np.linspace(0.2, 0.55, 4):
        start = rng.uniform(-1.6, -0.4)
        x = np.linspace(start, start + rng.uniform(1.2, 2.4), 24)
        pen.line(np.stack([x, y + 0.04 * np.sin(x * 9)], axis=1), p.paper, 0.04)
    pen.shape(
        np.concatenate([curve((-5, 0.85), (0, rng.uniform(0.5, 0.8)), (5, 0.85)), path((5, 5), (-5, 5))]), p.ground
    )
    foot = -math.copysign(rng.uniform(0.4, 0.8), sun)
    if rng.random() < 0.6:
        crown = (foot + rng.uniform(-0.3, 0.3), -0.65)
        pen.line(curve((foot, 1.0), (foot, 0.1), crown), p.ink, 0.11)
        for angle in np.linspace(-200, 20, 6):
            tip = (
                crown[0] + 0.6 * math.cos(math.radians(angle)),
                crown[1] + 0.35 * math.sin(math.radians(angle)) + 0.15,
            )
            bend = ((crown[0] + tip[0]) / 2, min(crown[1], tip[1]) - 0.2)
            pen.line(curve(crown, bend, tip), p.ink, 0.09)
    else:
        pen.line(path((foot, 1.0), (foot + 0.1, -0.3)), p.ink, 0.06)
        pen.shape(ellipse(foot + 0.1, -0.1, 0.6, 0.45, 180, 360), p.accent, p.ink)
        pen.shape(path((foot - 0.1, -0.1), (foot + 0.1, -0.55), (foot + 0.3, -0.1)), p.paper)


def _city(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    left = float(rng.uniform(-1.9, -1.5))
    while left < 1.6:
        width, top = rng.uniform(0.32, 0.6), rng.uniform(-1.0, 0.2)
        wall = (p.body, p.ink, p.accent)[rng.integers(3)]
        window = p.paper if wall != p.paper else p.ink
        pen.shape(box(left, top, left + width, 0.9), wall, p.ink)
        if rng.random() < 0.3:
            pen.line(path((left + width / 2, top), (left + width / 2, top - 0.3)), p.ink, 0.04)
        columns, rows = max(2, round(width / 0.16)), max(2, round((0.8 - top) / 0.2))
        lit = rng.random((columns, rows)) < 0.7
        for column, row in np.argwhere(lit).tolist():
            x, y = left + width * (column + 0.28) / columns, top + 0.08 + (0.8 - top) * row / rows
            pen.shape(box(x, y, x + 0.44 * width / columns, y + 0.1), window)
        left += width + rng.uniform(0.0, 0.12)
    pen.shape(box(-5, 0.88, 5, 1.2), p.ground)


def _flowers(pen: Pen, p: Palette, rng: np.random.Generator) -> None:
    count = int(rng.integers(1, 4))
    for index in range(count):
        x = (index - (count - 1) / 2) * 0.85 + rng.uniform(-0.15, 0.15)
        y, size = rng.uniform(-0.6, -0.1), rng.uniform(0.4, 0.55) * (1.35 if count == 1 else 1)
        foot = 0.4 * x
        pen.line(curve((foot, 1.15), (x, 0.5), (x, y)), p.ink, 0.08)
        for side in (-1, 1):
            pen.shape(_leaf(foot + 0.3 * (x - foot), 0.7, side * rng.uniform(0.25, 0.4)), p.ground, p.ink)
        petals, turn = int(rng.integers(5, 9)), rng.uniform(0, 360)
        for petal in range(petals):
            angle = math.radians(turn + 360 * petal / petals)
            reach = np.array((math.cos(angle), math.sin(angle)))
            across = np.array((-reach[1], reach[0]))
            oval = ellipse(0.6, 0, 0.42, 1.1 * math.pi * 0.6 / petals)
            pen.shape((x, y) + size * (oval[:, :1] * reach + oval[:, 1:] * across), p.body, p.ink)
        pen.shape(ellipse(x, y, 0.32 * size, 0.32 * size), p.accent, p.ink)


def _leaf(x: float, y: float, length: float) -> np.ndarray:
    tip = (x + length, y - 0.2)
    return np.concatenate([curve((x, y), (x + 0.4 * length, y - 0.28), tip), curve(tip, (x + 0.7 * length, y), (x, y))])


SUBJECTS: dict[str, Callable[[Pen, Palette, np.random.Generator], None]] = {
    "beach": _beach,
    "car": _car,
    "cat": _cat,
    "city": _city,
    "dog": _dog,
    "flowers": _flowers,
    "football": _football,
    "pizza": _pizza,
}
