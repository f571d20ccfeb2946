"""What a person sees: a real run, the real tensorboard server, a real browser."""

import subprocess
from collections.abc import Iterator

import pytest
from conftest import PROGRAM, SMALL
from pictures import BROWSER, NORMS_PAGE, browse, cards, get, serve, wait_for


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tensorboard over a run that went on from step 16 twice, as one that was killed at step 18."""
    folder = tmp_path_factory.mktemp("run")
    last = folder / "logs/version_0/checkpoints/last.ckpt"

    def fit(*args: str) -> None:
        subprocess.run([*PROGRAM, "fit", *args], cwd=folder, check=True, stdout=subprocess.DEVNULL)

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


@pytest.mark.skipif(BROWSER is None, reason="needs chromium and chromedriver")
def test_the_link_that_fit_prints_shows_the_three_norms(tensorboard: str) -> None:
    with browse(f"{tensorboard}/{NORMS_PAGE}") as browser:
        wait_for(lambda: len(cards(browser)) == 3)
        assert cards(browser) == {"embedding_norm/input", "embedding_norm/position", "embedding_norm/token"}
