"""real runs -> the pictures in the README, docs/*.png: python docs/pictures.py"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from torch import Tensor, nn

from gpt2_lit.cli.report import norms_page

PROJECT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NORMS_PAGE = norms_page("version_0")  # the link that `train_stub.py fit` prints

# Most of TensorBoard's pages are elements within elements whose inside is closed to CSS and to the text of the page.
WALK = """
    const found = []
    function walk(node) {
        for (const child of node.childNodes) {
            if (child.shadowRoot) walk(child.shadowRoot)
            if (!["STYLE", "SCRIPT", "TEMPLATE"].includes(child.tagName)) { look(child); walk(child) }
        }
    }
"""


@contextmanager
def serve(log_directory: Path) -> Iterator[str]:
    """A tensorboard server over a log directory: its address, once it has read the runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={log_directory}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: get(f"{url}/data/runs"))
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def browse(url: str) -> Iterator[webdriver.Chrome]:
    """A headless browser with a page open."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1900,1750"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(url)
        yield browser
    finally:
        browser.quit()


def cards(browser: webdriver.Chrome) -> set[str]:
    """The tags of the charts on the page that are drawn."""
    drawn = [card for card in browser.find_elements(By.TAG_NAME, "card-view") if card.text]
    return {"".join(card.text.split("\n")[:2]).replace(" ", "") for card in drawn}


def page_text(browser: webdriver.Chrome) -> str:
    """All text of a page; a name that is split over elements is one word in it."""
    look = "function look(node) { if (node.nodeType == 3) found.push(node.data) }"
    return browser.execute_script(f"{WALK}{look}; walk(document.body); return found.join('').replace(/\\s+/g, ' ')")


def elements(browser: webdriver.Chrome, css: str) -> list:
    """The elements of a page that a CSS selector of one element matches, wherever they are."""
    look = "function look(node) { if (node.nodeType == 1 && node.matches(arguments_[0])) found.push(node) }"
    return browser.execute_script(f"const arguments_ = arguments; {WALK}{look}; walk(document.body); return found", css)


def projector(browser: webdriver.Chrome) -> Any:
    """The Projector on its page, once it has drawn its points. It lies in a frame within a frame."""
    browser.switch_to.default_content()

    def drawn() -> bool:
        while frames := browser.find_elements(By.TAG_NAME, "iframe"):
            browser.switch_to.frame(frames[0])
        ready = "return !!(arguments[0].dataSet && arguments[0].dataSet.points.length && arguments[0].projection)"
        return any(browser.execute_script(ready, element) for element in elements(browser, "vz-projector"))

    wait_for(drawn)
    return elements(browser, "vz-projector")[0]


def select_token(browser: webdriver.Chrome, token: str) -> None:
    """Select the point with that label in the Projector, which names its neighbours."""
    script = """
        const [projector, token] = arguments
        const place = projector.dataSet.points.findIndex(point => point.metadata.token == token)
        projector.notifySelectionChanged([place])
    """
    browser.execute_script(script, projector(browser), token)


def last_image(url: str, tag: str) -> bytes:
    """The newest picture of a tag of the one run that a server shows."""
    [run] = get(f"{url}/data/runs")
    images = get(f"{url}/data/plugin/images/images?run={run}&tag={tag}&sample=0")
    with urllib.request.urlopen(
        f"{url}/data/plugin/images/individualImage?{images[-1]['query']}", timeout=10
    ) as answer:
        return answer.read()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for(what: Any, seconds: float = 60) -> None:
    """Wait until something is true; a server that does not answer yet is not."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if what():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} seconds")
        time.sleep(0.2)


class CausalAttention(nn.Module):
    """One layer of a GPT, so that a place in the text matters. Without one, all positions learn the same."""

    def __init__(self, embed_dim: int = 64) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(embed_dim, 4, 4 * embed_dim, 0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, vectors: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(vectors.shape[1])
        return self.norm(self.layer(vectors, src_mask=mask, is_causal=True))


ATTENTION = [
    "--model.backbone=pictures.CausalAttention",
    "--data.tokenizer=words",
    "--data.stride=1",
    "--data.batch_size=32",
    "--trainer.limit_val_batches=0",
]


@contextmanager
def run(*options: str) -> Iterator[str]:
    """The address of a tensorboard server over a new run."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.pathsep.join([str(PROJECT), str(PROJECT / "docs")])
        program = [sys.executable, str(PROJECT / "train_stub.py"), "fit", *options]
        subprocess.run(program, cwd=directory, check=True, env={**os.environ, "PYTHONPATH": path})
        with serve(Path(directory) / "logs") as url:
            yield url


def main() -> None:
    docs = PROJECT / "docs"
    with run() as url:
        with browse(f"{url}/{NORMS_PAGE}") as browser:
            wait_for(lambda: len(cards(browser)) == 10)
            time.sleep(3)  # the lines are drawn after the axes
            browser.save_screenshot(str(docs / "tensorboard.png"))
        with browse(f"{url}/#projector") as browser:
            select_token(browser, "\u00b7he")
            time.sleep(2)
            browser.save_screenshot(str(docs / "projector.png"))
    with run(*ATTENTION) as url:
        (docs / "position_similarity.png").write_bytes(last_image(url, "embedding_picture%2Fposition_similarity"))


if __name__ == "__main__":
    main()
