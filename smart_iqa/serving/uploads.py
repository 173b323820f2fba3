"""The body of a request -> named files in memory. Nothing is written to disk, whatever its size.

An own reader, since Starlette's puts files of more than 1 MB on disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from iqa.data import NamedBytes
from smart_iqa.serving.limits import MB, Limits, RequestError, too_large

LONGEST_NAME = 255  # characters, as file systems have it
_MOST_PASSED_OVER = 256 * MB  # a refused body is read on to its end, so that the sender hears the answer; up to here
_MOST_HEADERS = 16_384  # bytes of a part's headers


class Upload(NamedBytes):
    """An image file in memory; its text is its name, which messages about it say.

    Attributes:
        problem: why it is not taken, if so; its bytes are gone then.
    """

    def __init__(self, name: str, content: bytes = b""):
        super().__init__(name, content)
        self.problem: RequestError | None = None

    def add(self, content: bytes, limits: Limits) -> int:
        """Append bytes, unless the file has a problem or gets too large; how many it holds more than before."""
        before = self.tell()
        if self.problem is None and before + len(content) > limits.max_file_mb * MB:
            self.problem = too_large(limits)
            self.truncate(0)
            self.seek(0)
        if self.problem is None:
            self.write(content)
        return self.tell() - before


class Memory:
    """The uploaded bytes that are held at a time, of all requests."""

    def __init__(self, limits: Limits):
        self.most, self.held = limits.max_memory_mb * MB, 0

    def take(self, count: int) -> None:
        """Count bytes (negative: give them back).

        Raises:
            RequestError: they do not fit.
        """
        if count > 0 and self.held + count > self.most:
            raise RequestError(503, "the server holds as many uploads as it may at the moment; try again")
        self.held += count


class Uploads:
    """The files of one request; their bytes count in `memory` until `close`."""

    def __init__(self, limits: Limits, memory: Memory):
        self.limits, self.memory = limits, memory
        self.files: list[Upload] = []
        self.held = 0

    def begin(self, name: str) -> None:
        """Start a file."""
        if len(self.files) == self.limits.max_files:
            raise RequestError(413, f"more than {self.limits.max_files} files in a request; send them in several")
        self.files.append(Upload(base_name(name)))

    def add(self, content: bytes) -> None:
        """Append bytes to the last file."""
        self.memory.take(len(content))
        self.held += len(content)
        kept = self.files[-1].add(content, self.limits)
        self.memory.take(kept - len(content))
        self.held += kept - len(content)

    def close(self) -> None:
        """Give the memory back."""
        self.memory.take(-self.held)
        self.held = 0
        self.files.clear()


def base_name(name: str) -> str:
    r"""The last part of a path of any system: browsers give the name alone, others may give more.

    >>> base_name("C:\\holiday\\a.jpg"), base_name("../../etc/b.png")
    ('a.jpg', 'b.png')
    """
    return name.replace("\\", "/").rpartition("/")[2][:LONGEST_NAME] or "image"


async def read_uploads(
    headers: Mapping[str, str], stream: AsyncIterator[bytes], name: str, uploads: Uploads
) -> list[Upload]:
    """Read the files of a request: every file of a form, or the body itself.

    Args:
        headers: of the request.
        stream: its body.
        name: of the file, where the body is one.
        uploads: takes the files.

    Raises:
        RequestError: it holds no file, or too many or too large ones; a file alone that is not taken has its `problem`.
    """
    kind, options = parse_options_header(headers.get("content-type", ""))
    reader: _Reader
    if kind == b"multipart/form-data":
        reader = _FormReader(options.get(b"boundary", b""), uploads)
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        uploads.begin(name)
        reader = _BodyReader(uploads)
    else:
        reader = _NoReader()
    await _read(reader, stream)
    if not any(file.problem or file.tell() for file in uploads.files):
        raise RequestError(422, "no image in the request: send files as a form, field `files`, or one file as the body")
    return uploads.files


async def _read(reader: _Reader, stream: AsyncIterator[bytes]) -> None:
    """Let a reader have the whole body; after a refusal the rest is passed over before it is raised."""
    refusal, passed_over = None, 0
    async for chunk in stream:
        if refusal is None:
            try:
                reader.write(chunk)
            except RequestError as refused:
                refusal = refused
            except FormParserError as error:
                refusal = RequestError(400, f"the form cannot be read: {error}")
        else:
            passed_over += len(chunk)
            if passed_over > _MOST_PASSED_OVER:
                break
    if refusal is not None:
        raise refusal
    reader.finish()


class _Reader(Protocol):
    """Takes a body part by part."""

    def write(self, content: bytes) -> None:
        """Take the next part."""

    def finish(self) -> None:
        """Check the whole, once it is there."""


class _BodyReader:
    """A body that is one file."""

    def __init__(self, uploads: Uploads):
        self.uploads = uploads

    def write(self, content: bytes) -> None:
        """Keep it."""
        self.uploads.add(content)

    def finish(self) -> None:
        """Nothing is left to do."""


class _NoReader:
    """A body of a kind that is not taken."""

    def write(self, content: bytes) -> None:
        """Pass it over."""

    def finish(self) -> None:
        """Raise the refusal."""
        raise RequestError(415, "send images as multipart/form-data, or one as the body with its type (image/png)")


class _FormReader:
    """A form (RFC 7578): its parts with a file name become files, the others are passed over."""

    def __init__(self, boundary: bytes, uploads: Uploads):
        self.uploads, self.is_file, self.is_complete = uploads, False, False
        self.header, self.value, self.disposition, self.size = b"", b"", b"", 0
        if not boundary:
            raise RequestError(400, "the form has no boundary in its Content-Type")
        self.parser = MultipartParser(boundary, {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_end": self._end,
        })  # fmt: skip

    def write(self, content: bytes) -> None:
        """Read on."""
        self.parser.write(content)

    def finish(self) -> None:
        """Check that the form is complete."""
        if not self.is_complete:
            raise RequestError(400, "the form cannot be read: it is cut off")

    def _end(self) -> None:
        self.is_complete = True

    def _begin(self) -> None:
        self.is_file, self.disposition, self.size = False, b"", 0

    def _counted(self, part: bytes) -> bytes:
        self.size += len(part)
        if self.size > _MOST_HEADERS:
            raise RequestError(400, "the form cannot be read: the headers of a part are too long")
        return part

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self.header += self._counted(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += self._counted(data[start:end])

    def _header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = self.value
        self.header, self.value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if b"filename" in options:
            self.is_file = True
            self.uploads.begin(_decoded(options[b"filename"]))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.is_file:
            self.uploads.add(data[start:end])


def _decoded(name: bytes) -> str:
    """A file name of a form: UTF-8; browsers write a quote as %22."""
    return name.decode("utf-8", errors="replace").replace("%22", '"')
