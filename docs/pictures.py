"""a real run -> docs/tensorboard.png, the picture in the README: python docs/pictures.py"""

import json
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

PROJECT = Path(__file__).parents[1]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NORMS_PAGE = "?tagFilter=embedding_norm&smoothing=0#timeseries"  # the link that `train_stub.py fit` prints


@contextmanager
def serve(log_folder: Path) -> Iterator[str]:
    """A tensorboard server over a log folder: its address, once it has read the runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={log_folder}", "--host=127.0.0.1", f"--port={port}"]
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
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "window-size=1900,1250"):
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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(PROJECT / "train_stub.py"), "fit"], cwd=folder, check=True)
        page = NORMS_PAGE.replace("embedding_norm", "embedding_norm%7Closs")
        with serve(Path(folder) / "logs") as url, browse(f"{url}/{page}") as browser:
            wait_for(lambda: len(cards(browser)) == 5)
            time.sleep(3)  # the lines are drawn after the axes
            browser.save_screenshot(str(PROJECT / "docs" / "tensorboard.png"))


if __name__ == "__main__":
    main()
