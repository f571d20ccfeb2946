"""What a person sees: a real run, the real tensorboard server, a real browser."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import SMALL
from pictures import (
    BROWSER,
    NORMS_PAGE,
    browse,
    cards,
    elements,
    get,
    last_image,
    page_text,
    projector,
    select_token,
    serve,
    wait_for,
)

from gpt2_lit.cli.main import train

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tensorboard over a run that went on from step 16 twice, as one that was killed at step 18."""
    folder = tmp_path_factory.mktemp("run")
    last = folder / "logs/version_0/checkpoints/last.ckpt"

    def fit(*args: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["train_stub.py", "fit", *args])
            train()

    fit(*SMALL, "--trainer.max_steps=16")
    at_step_16 = last.read_bytes()
    fit("--ckpt_path=last", "--trainer.max_steps=18")
    last.write_bytes(at_step_16)
    fit("--ckpt_path=last", "--trainer.max_steps=30")
    with serve(folder / "logs") as url:
        yield url


def test_a_run_that_goes_on_in_its_folder_shows_one_curve(tensorboard: str) -> None:
    points = get(f"{tensorboard}/data/plugin/scalars/scalars?run=version_0&tag=train%2Floss")
    assert [step for _, step, _ in points] == list(range(30))


def test_the_newest_heat_map_is_that_of_the_last_step(tensorboard: str) -> None:
    tag = "embedding_picture%2Fposition_similarity"
    images = get(f"{tensorboard}/data/plugin/images/images?run=version_0&tag={tag}&sample=0")
    assert len(images) == 10, "at most, of those that a run drew that was resumed twice"
    assert images[-1]["step"] == 30
    assert last_image(tensorboard, tag).startswith(b"\x89PNG")


@needs_browser
def test_the_link_that_fit_prints_shows_losses_and_norms_as_curves_histograms_and_pictures(tensorboard: str) -> None:
    with browse(f"{tensorboard}/{NORMS_PAGE}") as browser:
        wait_for(lambda: len(cards(browser)) == 10)
        assert cards(browser) == {
            "embedding_norm/input",
            "embedding_norm/position",
            "embedding_norm/token",
            "embedding_picture/norm_by_count",
            "embedding_picture/norm_by_position",
            "embedding_picture/norms_of_positions",
            "embedding_picture/norms_of_tokens",
            "embedding_picture/position_similarity",
            "train/loss",
            "val/loss",
        }
        images = (
            "return [...document.querySelectorAll('card-view img')].filter(image => image.naturalHeight == 430).length"
        )
        wait_for(lambda: browser.execute_script(images) == 3)


@needs_browser
def test_one_chart_draws_the_three_norms_and_three_draw_their_bands(tensorboard: str) -> None:
    with browse(f"{tensorboard}/#custom_scalars") as browser:
        wait_for(lambda: "Matches (6)" in page_text(browser))
        text = page_text(browser)
        for kind in ("token", "position", "input"):
            assert f"embedding_norm/{kind} (version_0)" in text
            assert f"norm_expected/{kind} (version_0)" in text
            assert f"{kind} norm: mean, 5th to 95th percentile" in text
        # Plottable's classes: a line of 30 points each, and an area each for the bands.
        wait_for(lambda: len([line for line in elements(browser, "path.line") if _drawn(line)]) >= 6)
        wait_for(lambda: len([area for area in elements(browser, "path.area") if _drawn(area)]) >= 3)
        # The steps begin at 0 and end at 29, and so do all areas: none ends where the 95th percentile leaves the view.
        ends = {_ends(area) for area in elements(browser, "path.area") if _drawn(area)}
        assert len(ends) == 1, ends


def _drawn(path: Any) -> bool:
    return len(path.get_attribute("d") or "") > 100


def _ends(path: Any) -> tuple[float, float]:
    across = [float(x) for x in re.findall(r"[ML]([-\d.]+),", path.get_attribute("d"))]
    return round(min(across)), round(max(across))


def test_each_tag_has_a_description(tensorboard: str) -> None:
    for plugin in ("scalars", "images", "histograms"):
        tags = get(f"{tensorboard}/data/plugin/{plugin}/tags")["version_0"]
        assert tags
        assert not [tag for tag, about in tags.items() if not about["description"]]


@needs_browser
def test_the_text_begins_with_how_to_read_the_page(tensorboard: str) -> None:
    with browse(f"{tensorboard}/#text") as browser:
        wait_for(lambda: "warning sign" in page_text(browser))
        text = page_text(browser)
        assert text.index("How to read this page") < text.index("training_windows")
        assert "begin at 6.55, the logarithm of 696 tokens" in text
        assert "begin as initialised (token 0.057, position 0.028, input 0.063)" in text
        assert len(elements(browser, "tr")) > 8, "a table, not its source"


@needs_browser
def test_the_text_shows_training_windows_with_their_targets(tensorboard: str) -> None:
    with browse(f"{tensorboard}/#text") as browser:
        wait_for(lambda: "window 0" in page_text(browser))
        text = page_text(browser)
        assert "training windows, the first 32 of 32 tokens of each" in text
        assert "input The Rain Book Every morning but Sunday , Wina Tuck" in text
        assert "target Rain Book Every morning but Sunday , Wina Tuck" in text


@needs_browser
def test_the_projector_shows_a_point_a_token_with_its_label_and_its_neighbours(tensorboard: str) -> None:
    with browse(f"{tensorboard}/#projector") as browser:
        labels = browser.execute_script(
            "return arguments[0].dataSet.points.map(point => Object.values(point.metadata))", projector(browser)
        )
        counts = [count for _, count in labels]
        assert counts == sorted(counts, reverse=True)
        words = dict(labels)
        assert words["morning"] < words["the"]
        select_token(browser, "morning")
        wait_for(lambda: "Nearest points" in page_text(browser))
        text = page_text(browser)
        assert f"Points: {len(labels)}" in text
        assert any(f"{word} 0." in text or f"{word}0." in text for word in words if word != "morning")
