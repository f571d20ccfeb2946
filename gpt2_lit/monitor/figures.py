"""numbers -> figures: a heat map, a line chart and a scatter plot, with title, axes and units, as images.

Drawn with Pillow, which comes with TensorBoard: matplotlib, wherever it is installed, costs each training 0.4 s.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

# TensorBoard's cards show a picture 215 pixels high, whatever its size, and take the nearest pixel for each. So it is
# 430 pixels high, and drawn twice as large again: the sizes here are those of drawing, four for a pixel of a card.
SHRINK, CARD_PIXEL = 2, 4
INK, FAINT, GRID, PAPER, LINE = "#202124", "#5f6368", "#e3e5e8", "#ffffff", "#c2410c"
HEIGHT = 860
LEFT, TOP, SIDE = 152, 136, 592  # of the plot: its corner, and how high it is; a heat map is as wide
RIGHT = 168  # for the bar of a heat map
CHART_WIDTH = 1320
MAX_CELLS = SIDE // CARD_PIXEL  # on a side of a heat map, each at least a pixel of a card
TITLE, TEXT = 56, 48  # sizes of letters

# Source: Bjorn Ottosson, "A perceptual color space for image processing", 2020: OKLab to linear sRGB.
OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
)
LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colors(values: Float[np.ndarray, "*N"]) -> UInt8[np.ndarray, "*N 3"]:
    """Colours from blue for -1 over white for 0 to red for 1: equal steps of a value look equally large.

    From white to either end is a straight line in OKLab, a colour space in which distances are those seen.

    Example:
        >>> colors(np.array([0.0])).tolist()
        [[247, 247, 247]]
    """
    strength = np.clip(np.abs(values), 0, 1)  # rounding can take a cosine a little beyond 1
    hue = np.radians(np.where(values > 0, 32, 258))
    lightness, chroma = 0.976 - 0.52 * strength, 0.155 * strength
    oklab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    linear = np.clip((oklab @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def heat_map(
    values: Float[np.ndarray, "M M"], positions: Shaped[np.ndarray, " M"], title: str, subtitle: str, label: str
) -> UInt8[np.ndarray, "H W 3"]:
    """A table of values from -1 to 1 as colours, with a bar that says which colour is which value.

    Args:
        values: What to show; row 0 is at the top.
        positions: The numbers of the rows and columns, rising.
        title: What the values are.
        subtitle: What to see in them.
        label: What the rows and columns are.

    Example:
        >>> heat_map(np.eye(4), np.arange(4), "Cosine similarity", "a test", "position").shape
        (430, 456, 3)
    """
    image, draw = _paper(title, subtitle, LEFT + SIDE + RIGHT, label, SIDE)
    cells = Image.fromarray(colors(values)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    image.paste(cells, (LEFT, TOP))
    for tick in nice_ticks(float(positions[0]), float(positions[-1]), whole=True):
        # The middle of that cell, or between two cells where positions are left out.
        at = SIDE * (np.interp(tick, positions, np.arange(len(positions))) + 0.5) / len(positions)
        _tick(draw, tick, LEFT + at, float(TOP + SIDE), below=True)
        _tick(draw, tick, float(LEFT), TOP + at, below=False)

    bar = np.broadcast_to(np.linspace(1, -1, SIDE)[:, None], (SIDE, 44))
    x = LEFT + SIDE + 40
    image.paste(Image.fromarray(colors(bar)), (x, TOP))
    for tick in (1, 0, -1):
        y = TOP + (1 - tick) / 2 * SIDE
        draw.line([(x + 44, y), (x + 56, y)], fill=INK, width=4)
        draw.text((x + 64, y), f"{tick}", fill=INK, font=_font(TEXT), anchor="lm")
    draw.rectangle([(x, TOP), (x + 44, TOP + SIDE)], outline=INK, width=2)
    draw.rectangle([(LEFT, TOP), (LEFT + SIDE, TOP + SIDE)], outline=INK, width=2)
    return _shrunk(image)


def line_chart(
    values: Float[np.ndarray, " N"], expected: float, title: str, subtitle: str, label: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Values from 0 up as a line over their numbers, and a level to compare them with.

    Args:
        values: What to show; the first is number 0.
        expected: A level, drawn as a broken line.
        title: What the values are.
        subtitle: What the level is.
        label: What their numbers are.

    Example:
        >>> line_chart(np.arange(4.0), 1.5, "Norm", "a test", "position").shape
        (430, 660, 3)
    """
    last = max(len(values) - 1.0, 1.0)
    ticks = {tick: tick / last for tick in nice_ticks(0.0, last, whole=True)}
    image, draw, pixels = _chart(float(values.max()), expected, ticks, title, subtitle, label)
    line = [pixels(x / last, y) for x, y in enumerate(values.tolist())]
    if len(line) == 1:  # a line as long as it is wide
        line.append((line[0][0] + 8, line[0][1]))
    draw.line(line, fill=LINE, width=8, joint="curve")
    _draw_level(draw, pixels, expected)
    return _shrunk(image)


def scatter(
    counts: Int64[np.ndarray, " N"],
    values: Float[np.ndarray, " N"],
    expected: float,
    title: str,
    subtitle: str,
    label: str,
) -> UInt8[np.ndarray, "H W 3"]:
    """Values from 0 up as dots over counts from 1 up, on a logarithmic axis, and a level to compare them with.

    Example:
        >>> scatter(np.array([1, 10]), np.array([1.0, 2.0]), 1.5, "Norm", "a test", "count").shape
        (430, 660, 3)
    """
    decades = max(math.log10(counts.max()), 1e-3)
    ticks = {10.0**power: power / decades for power in range(math.floor(decades) + 1)}
    image, draw, pixels = _chart(float(values.max()), expected, ticks, title, subtitle, label)
    for x, y in zip((np.log10(counts) / decades).tolist(), values.tolist(), strict=True):
        draw.circle(pixels(x, y), 7, fill=LINE)
    _draw_level(draw, pixels, expected)
    return _shrunk(image)


def nice_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Three to seven round numbers from low to high: multiples of 1, 2 or 5 times a power of ten.

    Example:
        >>> nice_ticks(0.0, 1023.0, whole=True)
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
        >>> nice_ticks(0.0, 0.17)
        [0.0, 0.05, 0.1, 0.15]
    """
    if not high > low:
        return [low]
    power = 10.0 ** np.floor(np.log10((high - low) / 3))
    step = power * max(size for size in (1, 2, 5) if size * power <= (high - low) / 3)
    step = max(1.0, step) if whole else step
    slack = 1e-9 * min(1.0, (high - low) / step)
    ticks = np.arange(np.ceil(low / step - slack) + 0.0, np.floor(high / step + slack) + 1) * step
    return [round(float(tick), 12) for tick in ticks]


Pixels: TypeAlias = Callable[[float, float], tuple[float, float]]


def _chart(
    highest: float, expected: float, ticks: Mapping[float, float], title: str, subtitle: str, label: str
) -> tuple[Image.Image, ImageDraw.ImageDraw, Pixels]:
    """Axes of values from 0 up, and where a share of the way to the right and a value lie."""
    width = CHART_WIDTH - LEFT - 60
    image, draw = _paper(title, subtitle, CHART_WIDTH, label, width)
    top = 1.08 * max(highest, expected) or 1.0

    def pixels(share: float, value: float) -> tuple[float, float]:
        return LEFT + share * width, TOP + (1 - value / top) * SIDE

    for tick in nice_ticks(0.0, top):
        x, y = pixels(0.0, tick)
        draw.line([(x, y), (x + width, y)], fill=GRID, width=4)
        _tick(draw, tick, x, y, below=False)
    for tick, share in ticks.items():
        _tick(draw, tick, *pixels(share, 0.0), below=True)
    draw.line([pixels(0.0, top), pixels(0.0, 0.0), pixels(1.0, 0.0)], fill=INK, width=4)
    return image, draw, pixels


def _draw_level(draw: ImageDraw.ImageDraw, pixels: Pixels, level: float) -> None:
    (x, y), (end, _) = pixels(0.0, level), pixels(1.0, level)
    for dash in range(int(x), int(end), 48):
        draw.line([(dash, y), (min(dash + 28, end), y)], fill=INK, width=6)


def _paper(
    title: str, subtitle: str, width: int, label: str, plot_width: int
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture with its words: above the plot, and below it the name of the axis."""
    image = Image.new("RGB", (width, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 6), title, fill=INK, font=_font(TITLE))
    draw.text((LEFT, 70), subtitle, fill=FAINT, font=_font(TEXT))
    draw.text((LEFT + plot_width / 2, HEIGHT - 10), label, fill=INK, font=_font(TEXT), anchor="ms")
    return image, draw


def _shrunk(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """At its size, each pixel the mean of those around it: every second one then makes a picture without gaps."""
    return np.asarray(image.filter(ImageFilter.BoxBlur(1.5)).reduce(SHRINK))


def _tick(draw: ImageDraw.ImageDraw, value: float, x: float, y: float, below: bool) -> None:
    """A number at an axis, below it or to its left, with a short line that says where."""
    draw.line([(x, y), (x, y + 12) if below else (x - 12, y)], fill=INK, width=4)
    at = (x, y + 18) if below else (x - 20, y)
    draw.text(at, f"{value:g}", fill=INK, font=_font(TEXT), anchor="ma" if below else "rm")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
