"""numbers -> figures: a heat map and a line chart, with title, axes and units, as images.

Drawn with Pillow, which comes with TensorBoard: matplotlib, wherever it is installed, costs each training 0.4 s.
"""

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

# Everything is drawn twice as large and halved at the end, which smooths lines. The sizes here are those of drawing.
SHRINK = 2
INK, FAINT, GRID, PAPER, LINE = "#202124", "#5f6368", "#e3e5e8", "#ffffff", "#c2410c"
LEFT, TOP, SIDE = 210, 170, 1024  # of the plot: its corner, and how wide and high it is
BOTTOM = 170
WIDTH = LEFT + SIDE + 210
CHART_HEIGHT = 1000

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
        subtitle: Where they are from.
        label: What the rows and columns are, with the unit.

    Example:
        >>> heat_map(np.eye(4), np.arange(4), "Cosine similarity", "a test", "position (tokens)").shape
        (682, 722, 3)
    """
    image, draw = _paper(title, subtitle, TOP + SIDE + BOTTOM)
    cells = Image.fromarray(colors(values)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    image.paste(cells, (LEFT, TOP))
    for tick in nice_ticks(float(positions[0]), float(positions[-1]), whole=True):
        # The middle of that cell, or between two cells where positions are left out.
        at = SIDE * (np.interp(tick, positions, np.arange(len(positions))) + 0.5) / len(positions)
        _tick(draw, tick, LEFT + at, float(TOP + SIDE), below=True)
        _tick(draw, tick, float(LEFT), TOP + at, below=False)
    _axis_labels(image, draw, label, label, SIDE, SIDE)

    bar = np.broadcast_to(np.linspace(1, -1, SIDE)[:, None], (SIDE, 44))
    x = LEFT + SIDE + 50
    image.paste(Image.fromarray(colors(bar)), (x, TOP))
    for tick in (1.0, 0.5, 0.0, -0.5, -1.0):
        y = TOP + (1 - tick) / 2 * SIDE
        draw.line([(x + 44, y), (x + 54, y)], fill=INK, width=3)
        draw.text((x + 62, y), f"{tick:.1f}", fill=INK, font=_font(46), anchor="lm")
    draw.rectangle([(x, TOP), (x + 44, TOP + SIDE)], outline=INK, width=2)
    draw.rectangle([(LEFT, TOP), (LEFT + SIDE, TOP + SIDE)], outline=INK, width=2)
    return np.asarray(image.reduce(SHRINK))


def line_chart(
    values: Float[np.ndarray, " N"], expected: float, title: str, subtitle: str, x_label: str, y_label: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Values from 0 up as a line over their numbers, and a level to compare them with.

    Args:
        values: What to show; the first is number 0.
        expected: A level, drawn as a broken line.
        title: What the values are.
        subtitle: Where they are from.
        x_label: What their numbers are, with the unit.
        y_label: What the values are, with the unit.

    Example:
        >>> line_chart(np.arange(4.0), 1.5, "Norm", "a test", "position (tokens)", "norm").shape
        (500, 722, 3)
    """
    width, height = WIDTH - LEFT - 70, CHART_HEIGHT - TOP - BOTTOM
    image, draw = _paper(title, subtitle, CHART_HEIGHT)
    last = max(len(values) - 1.0, 1.0)
    top = 1.08 * max(float(values.max()), expected) or 1.0

    def pixels(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / last * width, TOP + (1 - y / top) * height

    for tick in nice_ticks(0.0, top):
        x, y = pixels(0.0, tick)
        draw.line([(x, y), (x + width, y)], fill=GRID, width=3)
        _tick(draw, tick, x, y, below=False)
    for tick in nice_ticks(0.0, last, whole=True):
        _tick(draw, tick, *pixels(tick, 0.0), below=True)
    line = [pixels(float(x), y) for x, y in enumerate(values.tolist())]
    if len(line) == 1:  # a line as long as it is wide
        line.append((line[0][0] + 6, line[0][1]))
    draw.line(line, fill=LINE, width=6, joint="curve")
    x, y = pixels(0.0, expected)
    for dash in range(0, width, 32):
        draw.line([(x + dash, y), (x + min(dash + 18, width), y)], fill=INK, width=4)
    draw.line([(LEFT, TOP), (LEFT, TOP + height), (LEFT + width, TOP + height)], fill=INK, width=3)
    _axis_labels(image, draw, x_label, y_label, width, height)
    return np.asarray(image.reduce(SHRINK))


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


def _paper(title: str, subtitle: str, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 20), title, fill=INK, font=_font(60))
    draw.text((LEFT, 96), subtitle, fill=FAINT, font=_font(44))
    return image, draw


def _tick(draw: ImageDraw.ImageDraw, value: float, x: float, y: float, below: bool) -> None:
    """A number at an axis, below it or to its left, with a short line that says where."""
    draw.line([(x, y), (x, y + 12) if below else (x - 12, y)], fill=INK, width=3)
    at = (x, y + 22) if below else (x - 22, y)
    draw.text(at, f"{value:g}", fill=INK, font=_font(46), anchor="ma" if below else "rm")


def _axis_labels(
    image: Image.Image, draw: ImageDraw.ImageDraw, x_label: str, y_label: str, width: int, height: int
) -> None:
    """The name of the axis below a plot, and of that to its left, which is read from below."""
    draw.text((LEFT + width / 2, image.height - 22), x_label, fill=INK, font=_font(46), anchor="ms")
    aside = Image.new("RGB", (height, 60), PAPER)
    ImageDraw.Draw(aside).text((height / 2, 46), y_label, fill=INK, font=_font(46), anchor="ms")
    image.paste(aside.rotate(90, expand=True), (12, TOP))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
