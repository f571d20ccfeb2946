import gzip
import http.server
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpt2_lit.errors import FileError, MissingFile, NotPermitted
from gpt2_lit.text import web
from gpt2_lit.text.files import SHIPPED_TEXT, SourceFile, check_unchanged, local_file, open_file, unreadable
from gpt2_lit.text.readers import can_be_cut
from gpt2_lit.text.sources import Source


def find_files(choice) -> list[SourceFile]:
    return Source.of(choice).find_files()


needs_permissions = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read all")


def test_a_local_file_has_its_size_and_its_time_of_change(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    os.utime(tmp_path / "a.txt", ns=(1, 1234567891011))
    file = local_file(str(tmp_path / "a.txt"))
    assert file == SourceFile(str(tmp_path / "a.txt"), 4, file.stamp)
    assert file.stamp == f"1234567891011 {os.stat(tmp_path / 'a.txt').st_ctime_ns}"
    with open_file(file) as stream:
        assert stream.read() == b"text"


@pytest.mark.parametrize("change", [lambda path: path.write_text("more"), lambda path: os.utime(path, ns=(1, 1))])
def test_a_file_that_changed_since_it_was_found_is_noticed(tmp_path, change):
    path = tmp_path / "a.txt"
    path.write_text("text, which is longer")
    file = local_file(str(path))
    check_unchanged(file)
    change(path)
    with pytest.raises(FileError, match=r"a.txt changed while it was read: it had 21 bytes"):
        check_unchanged(file)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "No such file or directory"), MissingFile),
        (PermissionError(13, "Permission denied"), NotPermitted),
        (OSError(5, "Input/output error"), FileError),
    ],
)
def test_what_the_file_system_raises_is_told_with_the_file(error, kind):
    with pytest.raises(kind, match=f"a.txt cannot be read: {error.strerror}. Check its permissions and its disk"):
        raise unreadable("a.txt", error)


# URLs.


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``contents`` by name: as parts if ``ranges``, with the length if ``length``, packed if ``packs``."""

    contents: dict[str, bytes]
    ranges = length = True
    packs = False

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        if name not in self.contents:
            self.send_error(403 if name == "secret.txt" else 404)
            return
        raw, part = self.contents[name], self.headers.get("Range")
        if part and self.ranges:
            first, last = part.removeprefix("bytes=").split("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
            raw = raw[int(first) : int(last) + 1]
        else:
            self.send_response(200)
        if name.endswith(".gz") and self.packs:  # as Apache does it with AddEncoding, asked or not
            self.send_header("Content-Encoding", "gzip")
        elif self.packs and "gzip" in self.headers.get("Accept-Encoding", ""):
            raw = gzip.compress(raw)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("ETag", '"version 1"')
        if self.length:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(raw)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(contents: dict[str, bytes], **settings: bool) -> Iterator[str]:
    handler = type("Handler", (Server,), {"contents": contents, **settings})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *args: None  # a client may hang up
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


RAW = SHIPPED_TEXT.read_bytes() * 50


def test_a_url_is_found_and_opened_with_all_that_the_server_says_of_it():
    with serve({"a.txt": RAW}) as url:
        [file] = find_files(f"{url}/a.txt?download=true")
        assert file == SourceFile(f"{url}/a.txt?download=true", len(RAW), '"version 1"')
        assert can_be_cut(file)
        with open_file(file) as stream:
            assert stream.seek(1000) == 1000
            assert stream.read() == RAW[1000:]


@pytest.mark.parametrize("length", [True, False])
def test_a_server_that_sends_no_parts_is_noticed(length):
    with serve({"a.txt": RAW}, ranges=False, length=length) as url:
        [file] = find_files(f"{url}/a.txt")
        assert file == SourceFile(f"{url}/a.txt", len(RAW) if length else 0, '"version 1"', serves_ranges=False)
        assert not can_be_cut(file)
        with open_file(file) as stream:
            assert stream.read() == RAW


def test_a_server_that_packs_what_it_sends_is_asked_not_to():
    contents = {"a.txt": RAW, "b.txt.gz": gzip.compress(RAW)}
    with serve(contents, packs=True) as url:
        for name, raw in contents.items():
            [file] = find_files(f"{url}/{name}")
            with open_file(file) as stream:
                assert stream.read() == raw


def test_a_url_that_cannot_be_looked_at_is_named_with_the_reason(monkeypatch):
    monkeypatch.setattr(web, "_DELAYS", (0.01, 0.01))
    with serve({}) as url:
        for name, reason in {"b.txt": "HTTP status 404 Not Found", "secret.txt": "HTTP status 403 Forbidden"}.items():
            with pytest.raises(OSError, match=re.escape(f"{url}/{name} cannot be read: {reason}")):
                find_files(f"{url}/{name}")
    with pytest.raises(OSError, match=re.escape(f"{url}/a.txt cannot be read: ConnectionRefusedError: ")):
        find_files(f"{url}/a.txt")
    with pytest.raises(ValueError, match=r"data.source: no://a.txt cannot be read: no is none of http, https, s3, "):
        find_files("no://a.txt")
