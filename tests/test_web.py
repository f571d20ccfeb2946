import gzip
import hashlib
import http.server
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pytest

from gpt2_lit.errors import FileError, InvalidValue, MissingFile, NotPermitted
from gpt2_lit.text import readers, web
from gpt2_lit.text.files import SourceFile, open_file
from gpt2_lit.text.readers import TextOptions, read_pieces
from gpt2_lit.text.sources import Source

RAW = b"0123456789 " * 20_000
PACKED = gzip.compress(RAW)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(web, "_DELAYS", (0.01, 0.01, 0.01))


@contextmanager
def serve(answer: Callable[[http.server.BaseHTTPRequestHandler, int], None]) -> Iterator[tuple[str, list[str]]]:
    """A server whose ``answer`` gets the request and its number; its address, and the ranges that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Range", ""))
            answer(self, len(asked))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda request, client_address: None  # a client may hang up
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def send(
    request: http.server.BaseHTTPRequestHandler,
    raw: bytes = RAW,
    ranges: bool = True,
    cut: int | None = None,
    **headers: str,
) -> None:
    """Send a file, or the part of it that is asked for; ``cut`` bytes of the answer and no more."""
    part = request.headers.get("Range") if ranges else None
    if request.headers.get("If-Range", headers.get("ETag", '"one"')) != headers.get("ETag", '"one"'):
        part = None
    if part:
        first, last = (int(end) for end in part.removeprefix("bytes=").split("-"))
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
        raw = raw[first : last + 1]
    else:
        request.send_response(200)
    for name, value in {"Content_Length": str(len(raw)), "ETag": '"one"', **headers}.items():
        if value:
            request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(raw[:cut])


def find(url: str) -> SourceFile:
    [file] = Source.of(url).find_files()
    return file


def content(file: SourceFile) -> bytes:
    with open_file(file) as stream:
        return stream.read()


@pytest.mark.parametrize("ranges", [True, False])
def test_an_answer_that_is_cut_is_asked_for_again_from_there(ranges):
    with serve(lambda request, number: send(request, ranges=ranges, cut=50_000 * number)) as (url, asked):
        assert content(find(f"{url}/a.txt")) == RAW
        assert 2 < len(asked) < 6


@pytest.mark.parametrize("status", [503, 429, 500])
def test_a_server_that_refuses_for_a_while_is_asked_again(status):
    def answer(request, number):
        if number % 2:
            request.send_error(status)
        else:
            send(request)

    with serve(answer) as (url, _):
        assert content(find(f"{url}/a.txt")) == RAW


def test_a_part_of_a_file_is_never_taken_for_the_whole():
    # Every answer is cut after its first bytes, and comes from the start again: so it never gets on.
    with (
        serve(lambda request, number: send(request, ranges=False, cut=1000)) as (url, _),
        pytest.raises(FileError, match=r"a.txt cannot be read: ConnectionError: the connection ended after 1,000"),
    ):
        list(read_pieces(find(f"{url}/a.txt"), TextOptions()))


@pytest.mark.parametrize(("status", "kind"), [(404, MissingFile), (403, NotPermitted), (401, NotPermitted)])
def test_what_stays_refused_is_asked_for_once(status, kind):
    with serve(lambda request, number: request.send_error(status)) as (url, asked):
        with pytest.raises(kind, match=f"a.txt cannot be read: HTTP status {status} "):
            find(f"{url}/a.txt")
        assert len(asked) == 1


def test_a_file_that_changes_between_two_requests_is_an_error():
    with serve(lambda request, number: send(request, ETag=f'"{number}"')) as (url, _):
        file = find(f"{url}/a.txt")
        with pytest.raises(FileError, match=r"a.txt changed while it was read"):
            list(read_pieces(file, TextOptions()))


def test_a_part_is_asked_for_on_condition_that_the_file_is_the_same():
    conditions = []

    def answer(request, number):
        conditions.append(request.headers.get("If-Range"))
        send(request, cut=50_000 if number < 3 else None)

    with serve(answer) as (url, asked):
        assert content(find(f"{url}/a.txt")) == RAW
        assert asked == ["bytes=0-0", "", "bytes=50000-219999"]
        assert conditions == [None, None, '"one"']


@pytest.mark.parametrize("stamp", ['"two"', ""], ids=["and says so", "and does not say"])
def test_a_server_that_sends_another_file_whole_in_place_of_a_part_is_noticed(stamp):
    def answer(request, number):
        if number < 3:
            send(request, cut=50_000)
        else:
            send(request, RAW[::-1], ranges=False, ETag=stamp)

    with serve(answer) as (url, _), pytest.raises(FileError, match=r"a.txt changed while it was read"):
        content(find(f"{url}/a.txt"))


@pytest.mark.parametrize("stamp", ['W/"weak"', ""], ids=["weak", "none"])
def test_a_weak_validator_is_no_condition_and_is_compared_all_the_same(stamp):
    def answer(request, number):
        assert request.headers.get("If-Range") is None
        send(request, cut=50_000, ETag=stamp, Last_Modified="Sat, 01 Jan 2000 00:00:00 GMT")

    with serve(answer) as (url, _):
        assert content(find(f"{url}/a.txt")) == RAW


@pytest.mark.parametrize(("name", "sent"), [("a.txt", RAW), ("b.txt.gz", PACKED)])
def test_what_is_sent_packed_is_unpacked_once(name, sent):
    with serve(lambda request, number: send(request, PACKED, Content_Encoding="gzip")) as (url, _):
        file = find(f"{url}/{name}")
        assert content(file) == sent
        assert "".join(piece.text for piece in read_pieces(file, TextOptions())) == RAW.decode()


def test_a_packed_answer_that_is_cut_for_good_is_an_error():
    with (
        serve(lambda request, number: send(request, PACKED[:-20], Content_Encoding="gzip")) as (url, _),
        pytest.raises(FileError, match=r"a.txt cannot be read"),
    ):
        list(read_pieces(find(f"{url}/a.txt"), TextOptions()))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content_Encoding": "br"}, "comes with Content-Encoding: br, which is not unpacked. Download it"),
        ({"Content_Type": "text/html; charset=utf-8"}, r"is a web page \(Content-Type: text/html\).* Give the address"),
    ],
)
def test_what_is_not_the_text_is_refused(headers, message):
    with serve(lambda request, number: send(request, **headers)) as (url, _):
        for name in ("a.txt", "lines.jsonl", ""):
            with pytest.raises(InvalidValue, match=message):
                find(f"{url}/{name}")


def test_an_empty_file_has_no_part_to_ask_for():
    def answer(request, number):
        if request.headers.get("Range"):
            request.send_error(416)
        else:
            send(request, b"")

    with serve(answer) as (url, _):
        assert content(find(f"{url}/a.txt")) == b""


def test_a_file_that_nothing_tells_from_another_is_told_by_its_content(monkeypatch, caplog):
    raw = RAW
    with serve(lambda request, number: send(request, raw, ETag="")) as (url, _):
        one, again = find(f"{url}/a.txt"), find(f"{url}/a.txt")
        assert one == again
        assert one.stamp == hashlib.blake2b(RAW, digest_size=8).hexdigest()
        raw = RAW.replace(b"0", b"1")
        assert find(f"{url}/a.txt") != one
        monkeypatch.setattr(web, "_HASHED", 1000)
        with caplog.at_level(logging.WARNING):
            assert find(f"{url}/a.txt").stamp != find(f"{url}/a.txt").stamp
        assert "a.txt has neither an ETag nor a Last-Modified" in caplog.text


def test_a_password_is_sent_and_never_shown():
    seen = []

    def answer(request, number):
        seen.append(request.headers.get("Authorization"))
        request.send_error(404)

    with serve(answer) as (url, _):
        secret = url.replace("//", "//wina:pass@") + "/a.txt?token=abc&page=2"
        with pytest.raises(MissingFile) as caught:
            find(secret)
        assert str(caught.value).startswith(f"{url}/a.txt?token=...&page=2 cannot be read")
        assert seen == ["Basic d2luYTpwYXNz"]
        assert str(Source.of(secret)) == f"{url}/a.txt?token=...&page=2"


def redirect(request: http.server.BaseHTTPRequestHandler, target: str) -> None:
    request.send_response(302)
    request.send_header("Location", target)
    request.end_headers()


@pytest.mark.parametrize("scheme", ["ftp", "file"])
def test_a_redirect_leads_to_a_web_server(scheme):
    with serve(lambda request, number: redirect(request, f"{scheme}://127.0.0.1/etc/passwd")) as (url, asked):
        with pytest.raises((InvalidValue, FileError)):
            find(f"{url}/a.txt")
        assert len(asked) == 1


def test_a_redirect_within_a_network_is_followed_and_one_from_the_internet_into_it_is_not(monkeypatch):
    def answer(request, number):
        if request.path == "/a.txt":
            redirect(request, "/b.txt?token=abc")
        else:
            send(request)

    with serve(answer) as (url, _):
        assert content(find(f"{url}/a.txt")) == RAW
        verdicts = iter([True])  # the address asked first counts as one of the Internet
        monkeypatch.setattr(web, "is_public", lambda address: next(verdicts, False))
        with pytest.raises(InvalidValue, match=r"a.txt redirects to .*b.txt\?token=\.\.\., which is of this machine"):
            find(f"{url}/a.txt")


def test_a_name_that_leads_to_this_machine_only_once_it_is_looked_up_again_is_noticed(monkeypatch):
    def answer(request, number):
        redirect(request, "/b.txt") if request.path == "/a.txt" else send(request)

    with serve(answer) as (url, asked):
        monkeypatch.setattr(web, "_addresses", lambda parts: ["93.184.215.14"])
        verdicts = iter([True, True, False])  # of the address that answered, of the name, of the address it led to
        monkeypatch.setattr(web, "is_public", lambda address: next(verdicts))
        with pytest.raises(
            InvalidValue, match=r"a redirect to .*/b.txt leads to 127\.0\.0\.1, which is of this machine"
        ):
            find(f"{url}/a.txt")
        assert len(asked) == 1


def test_a_redirect_is_judged_by_the_host_that_is_asked_and_not_by_how_it_is_written():
    parts = urlsplit("http://127%2E0%2E0%2E1/")
    assert web._addresses(parts) == ["127.0.0.1"]
    assert web._addresses(urlsplit("http://2130706433/")) == ["127.0.0.1"]
    assert web._addresses(urlsplit(f"http://{'a' * 70}.example/")) == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "100.64.0.1",
        "2002:7f00:1::",
    ],
)
def test_addresses_of_this_machine_and_its_network_are_not_public(address):
    assert not web.is_public(address)
    assert web.is_public("93.184.215.14")
    assert web.is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


@pytest.mark.parametrize("wrong", ["bytes 1-219999/220000", "bytes 0-219999/220000", "bytes 50000-219999/9", "rubbish"])
def test_a_part_that_was_not_asked_for_is_an_error(wrong):
    def answer(request, number):
        if number < 3:
            send(request, cut=50_000)
        else:
            request.send_response(206)
            request.send_header("Content-Range", wrong)
            request.end_headers()

    with serve(answer) as (url, _), pytest.raises(FileError, match="sends another part than it was asked for"):
        content(find(f"{url}/a.txt"))


def test_a_file_without_a_length_that_changes_while_it_is_sent_is_an_error():
    with (
        serve(lambda request, number: send(request, ranges=False, Content_Length="", ETag=f'"{number // 3}"')) as (
            url,
            _,
        ),
        pytest.raises(FileError, match=r"a.txt changed while it was read"),
    ):
        content(find(f"{url}/a.txt"))


def test_a_server_that_sends_without_end_is_left(monkeypatch):
    def answer(request, number):
        send(request, b"", ranges=False, Content_Length="")
        with suppress(OSError):
            while True:
                request.wfile.write(RAW)

    monkeypatch.setattr(readers, "_SMALL", 1 << 20)
    with serve(answer) as (url, _), pytest.raises(InvalidValue, match=r"a.txt holds more than 0.00105 GB of text\. If"):
        for _ in read_pieces(find(f"{url}/a.txt"), TextOptions()):
            pass
