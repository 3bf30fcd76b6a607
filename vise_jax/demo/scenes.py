"""Scenes of the demo corpus: a topic drawn as a subject, an affect as strokes, texture and layout around it.

Colors, contrast, size, place, background and distractors are drawn apart from both, so that neither can be read
from how much of which color an image holds.
"""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vise_jax.demo.subjects import SUBJECTS, Color, Palette, Pen

TOPICS = tuple(SUBJECTS)
AFFECTS = ("haha", "sorry", "angry", "wow", "love")

# Scenes are drawn this many times larger than the image, so that edges are smooth.
_OVERSAMPLING = 2


def render(rng: np.random.Generator, topic: str, affect: str) -> Image.Image:
    """Draw one scene.

    Args:
        rng: draws pose, palette, background and distractors.
        topic: one of `TOPICS`.
        affect: one of `AFFECTS`.

    Returns:
        An RGB image, 80 to 160 pixels wide and high.
    """
    width, height = (_OVERSAMPLING * int(side) for side in rng.integers(80, 161, 2))
    palette = _palette(rng)
    image = _background(rng, width, height, palette)
    draw = ImageDraw.Draw(image, "RGBA")
    extent = min(width, height)
    unit = extent * rng.uniform(0.27, 0.4)
    center = np.array([width, height]) * rng.uniform(0.38, 0.62, 2)
    if affect == "sorry":
        # Small and low.
        unit, center[1] = 0.85 * unit, center[1] + 0.06 * height
    _distractors(rng, draw, width, height, palette)
    if affect == "wow":
        _rays(rng, draw, center, 1.5 * max(width, height), unit, palette)
    tilt = rng.uniform(-8, 8) + (rng.choice([-1, 1]) * rng.uniform(14, 32) if affect == "haha" else 0)
    turn = np.radians(tilt)
    turned = unit * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    flip = rng.choice([-1.0, 1.0])
    to_pixels = np.concatenate([turned * (flip, 1), center[:, None]], axis=1)
    jag = rng.uniform(0.03, 0.06) if affect == "angry" else 0.0
    wave = rng.uniform(0.03, 0.055) if affect == "haha" else 0.0
    SUBJECTS[topic](Pen(draw, to_pixels, unit, jag, wave), palette, rng)
    if affect in _IN_FRONT:
        _IN_FRONT[affect](rng, draw, width, height, palette)
    return _photograph(rng, image)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _palette(rng: np.random.Generator) -> Palette:
    """Draw six colors of a random scheme; the subject contrasts with the sky, and either may be the lighter one."""
    hue, spread = rng.random(), rng.uniform(0.08, 0.5)
    ink = _hsv(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.25))
    paper = _hsv(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.88, 1.0))
    if rng.random() < 0.25:
        ink, paper = paper, ink
    low, high = rng.uniform(0.3, 0.55), rng.uniform(0.75, 1.0)
    sky_value, body_value = (low, high) if rng.random() < 0.5 else (high, low)
    return Palette(
        sky=_hsv(hue, rng.uniform(0.1, 0.8), sky_value),
        ground=_hsv(hue + rng.normal(0, 0.15), rng.uniform(0.2, 0.8), rng.uniform(0.35, 0.8)),
        body=_hsv(hue + spread, rng.uniform(0.2, 0.9), body_value),
        accent=_hsv(hue - spread, rng.uniform(0.3, 0.95), rng.uniform(0.4, 1.0)),
        ink=ink,
        paper=paper,
    )


def _background(rng: np.random.Generator, width: int, height: int, p: Palette) -> Image.Image:
    """Draw a gradient in a random direction, and mostly a ground below it."""
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    ramp = (math.cos(angle) * x + math.sin(angle) * y)[..., None] * rng.uniform(5, 40)
    image = Image.fromarray(np.clip(np.array(p.sky, np.float32) + ramp, 0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        horizon = height * rng.uniform(0.5, 0.85)
        slope = height * rng.uniform(-0.06, 0.06)
        points = [(0, horizon - slope), (width, horizon + slope), (width, height), (0, height)]
        ImageDraw.Draw(image).polygon(points, fill=p.ground)
    return image


def _any_color(rng: np.random.Generator, alpha: tuple[float, float]) -> tuple[int, int, int, int]:
    return *_hsv(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.2, 1.0)), int(rng.uniform(*alpha))


def _distractors(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, p: Palette) -> None:
    """Draw clouds, boxes, dots and lines, independent of topic and affect."""
    extent = min(width, height)
    for _ in range(rng.integers(0, 4)):
        (x, y), size = rng.random(2) * (width, height), extent * rng.uniform(0.05, 0.16)
        box = (x - size, y - size * rng.uniform(0.5, 1), x + size, y + size)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=_any_color(rng, (60, 200)))
    for _ in range(rng.integers(0, 5)):
        ends = rng.random(4) * (width, height, width, height)
        draw.line(ends.tolist(), fill=_any_color(rng, (60, 200)), width=max(1, int(extent * rng.uniform(0.005, 0.02))))
    if rng.random() < 0.4:
        size = extent * rng.uniform(0.006, 0.016)
        color = _any_color(rng, (60, 200))
        for x, y in (rng.random((rng.integers(10, 60), 2)) * (width, height)).tolist():
            draw.ellipse((x - size, y - size, x + size, y + size), fill=color)


def _rays(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, center: np.ndarray, reach: float, unit: float, p: Palette
) -> None:
    """Draw rays from behind the subject."""
    count, turn = int(rng.integers(9, 18)), rng.uniform(0, 2 * math.pi)
    color = (*(p.paper, p.accent)[rng.integers(2)], int(rng.uniform(130, 230)))
    near, share = unit * rng.uniform(0.0, 0.9), rng.uniform(0.2, 0.5)
    for index in range(count):
        angles = turn + 2 * math.pi * (index + np.array([0, share])) / count
        start, end = (center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) for radius in (near, reach))
        draw.polygon([*map(tuple, start.tolist()), *map(tuple, end[::-1].tolist())], fill=color)


def _confetti(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, p: Palette) -> None:
    """Draw scraps of paper and streamers."""
    extent = min(width, height)
    scrap = np.array([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)])
    for _ in range(rng.integers(14, 32)):
        turn, size = rng.uniform(0, math.pi), extent * rng.uniform(0.02, 0.038)
        turned = scrap[: rng.integers(3, 5)] @ np.array(
            [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        )
        points = rng.random(2) * (width, height) + size * turned
        draw.polygon([tuple(point) for point in points.tolist()], fill=_any_color(rng, (170, 255)))
    for _ in range(rng.integers(2, 5)):
        start, along = rng.random(2) * (width, height), np.linspace(0, rng.uniform(0.15, 0.3) * extent, 16)
        curl = np.stack([start[0] + along, start[1] + 0.03 * extent * np.sin(along / extent * 70)], axis=1)
        color = _any_color(rng, (170, 255))
        draw.line([tuple(point) for point in curl.tolist()], fill=color, width=max(1, int(0.016 * extent)))


def _rain(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, p: Palette) -> None:
    """Draw parallel streaks, and often a cloud that they fall from."""
    extent = min(width, height)
    lean, color = rng.uniform(-0.45, 0.45), (*(p.paper, p.ink)[rng.integers(2)], int(rng.uniform(130, 230)))
    thickness = max(1, int(extent * rng.uniform(0.008, 0.016)))
    for x, y in (rng.uniform(-0.1, 1.1, (rng.integers(22, 50), 2)) * (width, height)).tolist():
        length = extent * rng.uniform(0.1, 0.2)
        draw.line((x, y, x + lean * length, y + length), fill=color, width=thickness)
    if rng.random() < 0.5:
        middle = rng.uniform(0.2, 0.8) * width
        for offset in rng.uniform(-0.25, 0.25, 6).tolist():
            x, size = middle + offset * extent, extent * rng.uniform(0.07, 0.13)
            draw.ellipse((x - 1.3 * size, -size, x + 1.3 * size, size), fill=(*p.ink, 170))


def _bolts(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, p: Palette) -> None:
    """Draw zigzags that come in from the borders."""
    extent = min(width, height)
    color = (*(p.paper, p.ink, p.accent)[rng.integers(3)], int(rng.uniform(150, 255)))
    for _ in range(rng.integers(3, 7)):
        angle = rng.uniform(0, 2 * math.pi)
        direction = np.array([math.cos(angle), math.sin(angle)])
        start = np.array([width, height]) * (0.5 + 0.6 * direction)
        steps = int(rng.integers(4, 8))
        along = np.linspace(0, extent * rng.uniform(0.3, 0.55), steps)
        sideways = np.where(np.arange(steps) % 2, 1, -1) * extent * rng.uniform(0.03, 0.06)
        points = start - along[:, None] * direction + sideways[:, None] * np.array([-direction[1], direction[0]])
        points = [tuple(point) for point in points.tolist()]
        draw.line(points, fill=color, width=max(1, int(extent * rng.uniform(0.012, 0.024))))


def _hearts(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, p: Palette) -> None:
    """Draw hearts and soft round lights."""
    extent = min(width, height)
    t = np.linspace(0, 2 * math.pi, 24)
    heart = np.stack([16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t)], axis=1) / 16
    for _ in range(rng.integers(5, 11)):
        points = rng.random(2) * (width, height) + extent * rng.uniform(0.04, 0.095) * heart
        draw.polygon([tuple(point) for point in points.tolist()], fill=_any_color(rng, (150, 240)))
    for _ in range(rng.integers(2, 6)):
        (x, y), size = rng.random(2) * (width, height), extent * rng.uniform(0.04, 0.1)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=(*p.paper, int(rng.uniform(40, 100))))


_IN_FRONT: dict[str, Callable[[np.random.Generator, ImageDraw.ImageDraw, int, int, Palette], None]] = {
    "haha": _confetti,
    "sorry": _rain,
    "angry": _bolts,
    "love": _hearts,
}


def _photograph(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Resize to the final size, with random vignette, contrast, brightness, blur and grain."""
    image = image.resize((image.width // _OVERSAMPLING, image.height // _OVERSAMPLING), Image.Resampling.BOX)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0)))
    pixels: np.ndarray = np.asarray(image, np.float32)
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in image.size)
    shade = 1 - rng.uniform(0, 0.35) * (x**2 + y[:, None] ** 2)[..., None]
    grain = rng.normal(0, rng.uniform(1, 8), (*pixels.shape[:2], 1)).astype(np.float32)
    pixels = (pixels * shade - 128) * rng.uniform(0.6, 1.05) + 128 + rng.uniform(-25, 25) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
