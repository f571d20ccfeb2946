"""a URL of a web server -> its bytes, also over a connection that breaks."""

import base64
import gzip
import hashlib
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from logging import getLogger
from typing import Any, NamedTuple

from gpt2_lit.errors import FileError, InvalidValue, UserError, shown

_LOG = getLogger(__name__)
_TIMEOUT = 120  # seconds of silence
_DELAYS = (0.5, 1, 3)  # seconds before a failed request is tried again, if nothing came in between
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP's statuses of a server that may answer later
_HASHED = 1 << 24  # bytes of a file that are read to tell it from another where the server does not
_FAILURES = (OSError, http.client.HTTPException)
_DIFFERS = "{} changed while it was read. Start again when nothing writes to it."


class Page(NamedTuple):
    """What a server says of a file."""

    size: int  # bytes; 0 if it does not say
    stamp: str  # its ETag or time of change; empty if it does not say
    serves_ranges: bool
    is_packed: bool  # sent as gzip, whatever is asked for


def look(url: str) -> Page:
    """What a server says of a file.

    Raises:
        InvalidValue: If it is a page, or packed in another way than gzip.
        OSError, HTTPException: If there is no such file, or no answer.
    """
    with _retried(url, "bytes=0-0") as answer:
        size = answer.headers.get("Content-Length") if answer.status == 200 else None
        if answer.status == 206:
            size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(size) if size and size.isdecimal() else 0
        name = urllib.parse.urlsplit(url).path.lower()
        form = answer.headers.get_content_type()
        if form in ("text/html", "application/xhtml+xml") and not name.endswith((".html", ".htm", ".xhtml")):
            raise InvalidValue(
                f"data.source: {url} is a web page (Content-Type: {form}): a list of files, a login or an error, and "
                "not the text itself. Give the address that the text itself has."
            )
        packing = answer.headers.get("Content-Encoding", "").strip().lower()
        if packing in ("", "identity") or (packing.endswith("gzip") and name.endswith(".gz")):
            return Page(size, _stamp(answer), answer.status == 206 and size > 0, False)
        if packing not in ("gzip", "x-gzip"):
            raise InvalidValue(
                f"data.source: {url} comes with Content-Encoding: {packing}, which is not unpacked. Download it, "
                "unpack it and give the file."
            )
        return Page(0, _stamp(answer), False, True)


def content_stamp(url: str, is_packed: bool) -> str:
    """A hash of a file's content, where the server sends no validator; of a large one, another each time."""
    with open_url(url, is_packed=is_packed) as stream:
        content = stream.read(_HASHED + 1)
    if len(content) > _HASHED:
        _LOG.warning(
            "%s has neither an ETag nor a Last-Modified, so that nothing tells whether it changed: it is encoded anew "
            "each time. Download it, or keep its tokens: gpt2-lit prepare.",
            shown(url),
        )
        return f"seen at {time.time_ns()}"
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def open_url(url: str, size: int = 0, stamp: str = "", is_packed: bool = False) -> Any:
    """The bytes of a file, whole: what breaks off is asked for again from there."""
    stream = io.BufferedReader(_WebFile(url, size, stamp), 1 << 17)
    return io.BufferedReader(_Unpacked(fileobj=stream)) if is_packed else stream


class _Unpacked(gzip.GzipFile):
    def close(self) -> None:
        stream: Any = self.fileobj
        super().close()
        if stream:
            stream.close()


class _WebFile(io.RawIOBase):
    def __init__(self, url: str, size: int, stamp: str) -> None:
        self._url, self._size, self._stamp = url, size, stamp
        self._position = 0
        self._end: int | None = None  # where the answer should end
        self._answer: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position != self._position:
            self._hang_up()
            self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._size and self._position >= self._size:
            return 0
        delays = iter(_DELAYS)
        while True:
            try:
                answer = self._answer or self._ask()
                count = answer.readinto(buffer)
                if not count and self._end is not None and self._position < self._end:
                    raise ConnectionError(f"the connection ended after {self._position:,} of {self._end:,} bytes")
            except _FAILURES as error:
                self._hang_up()
                _wait(error, delays)
            else:
                self._position += count
                if not count and self._end is None:
                    self._check_still_same()
                return count

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _ask(self) -> Any:
        part = f"bytes={self._position}-{self._size - 1 if self._size else ''}" if self._position else None
        if_range = self._stamp if part and self._stamp.startswith('"') else None  # a strong ETag; W/"..." is a weak one
        self._answer = answer = _request(self._url, part, if_range)
        stamp = _stamp(answer)
        # All of a file in place of a part is how a server says that it is another one.
        if self._stamp and stamp != self._stamp and (stamp or (if_range and answer.status == 200)):
            raise FileError(_DIFFERS.format(self._url))
        length, start = answer.headers.get("Content-Length"), self._position if answer.status == 206 else 0
        if answer.status == 206 and not _is_part(answer.headers.get("Content-Range", ""), start, self._size):
            raise FileError(f"{self._url}: the server sends another part than it was asked for. Download the file.")
        self._end = start + int(length) if length and length.isdecimal() else self._size or None
        while start < self._position:  # a server that sends no parts
            block = answer.read(min(self._position - start, 1 << 17))
            if not block:
                raise ConnectionError(f"the connection ended after {start:,} bytes")
            start += len(block)
        return answer

    def _check_still_same(self) -> None:
        """What ends without a length may have been cut or replaced: the server's validator must be the same."""
        if self._stamp:
            with _retried(self._url, "bytes=0-0") as answer:
                if _stamp(answer) not in ("", self._stamp):
                    raise FileError(_DIFFERS.format(self._url))

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer = None


def _is_part(content_range: str, start: int, size: int) -> bool:
    """Whether an answer is the part of a file from ``start`` on, and the file has its ``size``, if that is known.

    Example:
        >>> [_is_part(f"bytes {part}", start=5, size=9) for part in ("5-8/9", "5-8/*", "0-8/9", "5-8/10", "5-4/9")]
        [True, True, False, False, False]
    """
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
    if not found or int(found[1]) != start or int(found[2]) < start:
        return False
    return not size or found[3] in ("*", str(size))


def may_redirect(scheme: str, addresses: Iterable[str], *, from_public: bool) -> bool:
    """Whether a redirect may be followed: over HTTP, and from a public address only to public ones.

    Example:
        >>> may_redirect("https", ["93.184.215.14"], from_public=True)
        True
        >>> [may_redirect("http", [address], from_public=True) for address in ("127.0.0.1", "169.254.169.254", "::1")]
        [False, False, False]
        >>> may_redirect("ftp", [], from_public=False)
        False
    """
    return scheme in ("http", "https") and (not from_public or all(map(is_public, addresses)))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet, and not of this machine or its network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return (inner or found).is_global and not found.is_multicast


class _Fetch(urllib.request.HTTPRedirectHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """One request with its redirects, none of which leads from the Internet to this machine or its network."""

    _was_public = False  # whether an address of the Internet has answered

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        target, source = urllib.parse.urlsplit(newurl), urllib.parse.urlsplit(req.full_url)
        from_public = self._was_public or all(map(is_public, _addresses(source)))
        if not may_redirect(target.scheme, _addresses(target), from_public=from_public):
            fp.close()
            raise InvalidValue(
                f"data.source: {req.full_url} redirects to {newurl}, which is of this machine or its network, or is no "
                "web server's. Give that address itself if you mean it."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
        def made(*args: Any, **others: Any) -> Any:
            connection = http_class(*args, **others)
            connect = connection.connect
            connection.connect = lambda: (connect(), self._check_reached(connection, req))
            return connection

        return super().do_open(made, req, **options)

    def _check_reached(self, connection: Any, req: Any) -> None:
        """The address itself, as a name may lead to another one each time that it is looked up."""
        if req.has_proxy() or req._tunnel_host:
            return
        address = connection.sock.getpeername()[0]
        if self._was_public and not is_public(address):
            raise InvalidValue(
                f"data.source: a redirect to {req.full_url} leads to {address}, which is of this machine or its "
                "network. Give that address itself if you mean it."
            )
        self._was_public = self._was_public or is_public(address)


def _addresses(parts: urllib.parse.SplitResult) -> list[str]:
    """The IP addresses of a URL's host; none where a proxy looks it up, or nobody knows it."""
    try:
        host = urllib.parse.unquote(parts.hostname or "")
        found = socket.getaddrinfo(host, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return []
    return [str(address[0]) for *_, address in found]


def _retried(url: str, part: str) -> Any:
    delays = iter(_DELAYS)
    while True:
        try:
            return _request(url, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing to take a part of: an empty file
                error.close()
                return _request(url)
            _wait(error, delays)
        except _FAILURES as error:
            _wait(error, delays)


def _wait(error: Exception, delays: Any) -> None:
    """Give a failure time to pass; raise it if it is none that passes, or has not."""
    reason = getattr(error, "reason", error)
    is_lasting = isinstance(reason, ssl.SSLCertVerificationError) or "Name or service not known" in str(reason)
    if isinstance(error, urllib.error.HTTPError):
        is_lasting = error.code not in _PASSING
        error.close()
    delay = None if is_lasting or isinstance(error, UserError) else next(delays, None)
    if delay is None:
        raise error
    time.sleep(delay)


def _request(url: str, part: str | None = None, if_range: str | None = None) -> Any:
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    url = urllib.parse.urlunsplit(parts._replace(netloc=host, fragment=""))
    url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # as browsers do it with spaces and letters beyond ASCII
    # The bytes as they are stored, so that sizes and ranges mean them.
    headers = {"Accept-Encoding": "identity", "User-Agent": "gpt2_lit", "Range": part, "If-Range": if_range}
    headers = {name: value for name, value in headers.items() if value}
    request = urllib.request.Request(url, headers=headers)
    if user:
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return urllib.request.build_opener(_Fetch).open(request, timeout=_TIMEOUT)


def _stamp(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
