import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from gpt2_lit.monitor.figures import (
    CARD_PIXEL,
    LEFT,
    MAX_CELLS,
    SHRINK,
    SIDE,
    TOP,
    colors,
    heat_map,
    line_chart,
    nice_ticks,
    scatter,
)


def test_minus_one_is_blue_zero_is_white_and_one_is_red():
    blue, white, red = colors(np.array([-1.0, 0.0, 1.0])).astype(int)
    assert blue[2] > blue[0] + 100
    assert red[0] > red[2] + 100
    assert white.min() > 240
    assert np.ptp(white) == 0


def test_a_rounding_error_beyond_one_is_one():
    assert np.array_equal(colors(np.array([1.0000001, -1.0000001])), colors(np.array([1.0, -1.0])))


@pytest.mark.parametrize("sign", [-1, 1])
def test_colors_get_darker_in_equal_steps(sign):
    # Source: CIE 1931 and CIELAB, whose L* is the lightness that is seen.
    srgb = colors(sign * np.linspace(0, 1, 11)) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    steps = -np.diff(lightness)
    assert steps.min() > 4
    assert steps.max() < 1.5 * steps.min()


@pytest.mark.parametrize("num_cells", [1, 2, 5, 32, MAX_CELLS])
def test_each_cell_of_a_heat_map_has_the_color_of_its_value_the_first_row_on_top(num_cells):
    values = np.random.default_rng(0).uniform(-1, 1, (num_cells, num_cells))
    figure = heat_map(values, np.arange(num_cells), "title", "subtitle", "label")
    cell = SIDE / SHRINK / num_cells
    for row, column in {(0, num_cells - 1), (num_cells // 2, 0), (num_cells - 1, num_cells // 2)}:
        x, y = LEFT / SHRINK + (column + 0.5) * cell, TOP / SHRINK + (row + 0.5) * cell
        if num_cells < MAX_CELLS:  # smaller cells are mixed with their neighbours
            assert np.array_equal(figure[int(y), int(x)], colors(values[row, column, None])[0])


def dark(figure: np.ndarray) -> np.ndarray:
    return figure.astype(int).sum(axis=-1) < 300


@pytest.mark.parametrize("places", [np.arange(32), np.linspace(0, 1023, MAX_CELLS).round()])
def test_a_heat_map_has_text_on_all_sides_and_nothing_touches_the_edge(places):
    figure = heat_map(np.zeros((len(places), len(places))), places, "title", "subtitle", "label")
    left, top, right = LEFT // SHRINK, TOP // SHRINK, (LEFT + SIDE) // SHRINK
    for part in (figure[:top], figure[:, : left - 10], figure[top + SIDE // SHRINK + 10 :], figure[:, right + 54 :]):
        assert dark(part).any()
    for edge in (figure[0], figure[-1], figure[:, 0], figure[:, -1]):
        assert (edge == 255).all()


def test_the_numbers_of_a_heat_map_stand_at_the_middle_of_their_cells_and_its_bar_has_one_on_top():
    figure = heat_map(np.zeros((4, 4)), np.arange(4), "title", "subtitle", "label")
    below, aside = dark(figure[(TOP + SIDE + 8) // SHRINK]), dark(figure[:, (LEFT - 8) // SHRINK])
    for cell in range(4):
        at = SIDE * (cell + 0.5) / 4
        assert below[int(LEFT + at) // SHRINK]
        assert aside[int(TOP + at) // SHRINK]
    assert below.sum() < 20
    bar = figure[TOP // SHRINK + 3 : (TOP + SIDE) // SHRINK - 3, (LEFT + SIDE + 62) // SHRINK]
    assert np.abs(bar[[0, -1]].astype(int) - colors(np.array([1.0, -1.0])).astype(int)).max() < 8


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.5], [0.0, 0.0], 1024 * [0.002]], ids=len)
def test_a_line_chart_draws_its_line_and_the_level_where_they_belong(values):
    expected = 1.5 * max(values) or 1.0
    figure = line_chart(np.array(values), expected, "title", "subtitle", "x").astype(int)
    orange = (figure[..., 0] > 150) & (figure[..., 2] < 100)
    assert orange.any()
    bottom = (TOP + SIDE) // SHRINK
    height = SIDE / SHRINK
    level = bottom - height / 1.08
    near = dark(figure[int(level) - 2 : int(level) + 3, LEFT // SHRINK + 30 : LEFT // SHRINK + 500]).any(axis=0)
    assert 0.4 < near.mean() < 0.8, "a broken line"
    rows = np.nonzero(orange.any(axis=1))[0]
    assert rows.min() == pytest.approx(bottom - height * max(values) / (1.08 * expected), abs=3)
    assert rows.max() == pytest.approx(bottom - height * min(values) / (1.08 * expected), abs=3)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
@example(1e-9, 1e-6, True)
def test_ticks_are_few_evenly_spaced_and_within_the_range(low, length, whole):
    high = low + length
    ticks = nice_ticks(low, high, whole)
    tolerance = 1e-6 * max(abs(low), abs(high))
    assert all(low - tolerance <= tick <= high + tolerance for tick in ticks)
    assert len(ticks) <= 9
    if length >= 5 and length > 1e-3 * abs(low):
        assert len(ticks) >= 3
    if whole:
        assert all(tick == int(tick) for tick in ticks)


def test_a_range_of_one_number_has_that_tick():
    assert nice_ticks(4.0, 4.0) == [4.0]


def test_a_scatter_plot_has_a_dot_for_each_value_over_its_count_on_a_logarithmic_axis():
    figure = scatter(np.array([1, 10, 100]), np.array([3.0, 2.0, 1.0]), 0.0, "title", "subtitle", "x").astype(int)
    orange = (figure[..., 0] > 150) & (figure[..., 2] < 100)
    across = np.nonzero(orange.any(axis=0))[0]
    dots = np.split(across, np.nonzero(np.diff(across) > 1)[0] + 1)
    left, middle, right = [dot.mean() for dot in dots]
    assert left == pytest.approx(LEFT / SHRINK, abs=3)
    assert middle - left == pytest.approx(right - middle, abs=3), "a decade each"
    heights = [np.nonzero(orange[:, dot].any(axis=1))[0].mean() for dot in dots]
    assert np.diff(heights) == pytest.approx(2 * [SIDE / SHRINK / (1.08 * 3)], abs=2)


def test_tokens_that_are_all_there_once_have_their_dots_at_one():
    figure = scatter(np.array([1, 1]), np.array([3.0, 2.0]), 1.0, "title", "subtitle", "x")
    assert dark(figure[(TOP + SIDE + 20) // SHRINK :, LEFT // SHRINK - 10 : LEFT // SHRINK + 10]).any(), "the tick"


@pytest.mark.parametrize("start", [0, 1])
def test_in_a_card_half_as_high_by_the_nearest_pixel_words_and_lines_are_without_gaps(start):
    """What TensorBoard does to a picture: of 430 pixels it shows each second one."""
    figure = line_chart(np.full(32, 2.0), 1.0, "Norm", "dashed: expected", "position")
    assert figure.shape[0] == 2 * 215
    card = figure[start::2, start::2]
    smooth = np.asarray(Image.fromarray(figure).reduce(2))
    assert np.abs(card.astype(int) - smooth).mean() < 3, "close to a card that is shrunk with care"
    plot = slice(LEFT // CARD_PIXEL + 4, -20)
    line = (card[:, plot, 0] > card[:, plot, 2] + 60).any(axis=0)
    assert line.all(), "no gap in the line"
