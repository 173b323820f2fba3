"""What the server takes, and how it refuses the rest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from PIL import Image

from iqa.errors import UserError

MB = 1_000_000  # bytes; of pixels, a megapixel


@dataclass(frozen=True)
class Limits:
    """How much the server takes; a flag of `smart-iqa serve` for each.

    Attributes:
        max_file_mb: size of a file, in MB.
        max_files: files in a request.
        max_megapixels: pixels of an image as it is stored.
        max_seen_megapixels: pixels of an image as the network sees it; a long strip is enlarged to the smallest side.
        max_waiting: requests that are being read or computed; a further one is sent away.
        max_memory_mb: uploaded bytes of all requests that are held at a time, in MB.
        timeout: seconds from the start of a request to its last score.
    """

    max_file_mb: float = 20
    max_files: int = 32
    max_megapixels: float = 50
    max_seen_megapixels: float = 8
    max_waiting: int = 64
    max_memory_mb: float = 512
    timeout: float = 60

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise UserError(f"--{field.name}: expected a number above 0, got {getattr(self, field.name)}")
        most = (Image.MAX_IMAGE_PIXELS or float("inf")) / MB
        if self.max_megapixels > most:
            got = f"got {self.max_megapixels:g}"
            raise UserError(f"--max_megapixels: expected at most {most:.0f}, which is Pillow's limit, {got}")


class RequestError(Exception):
    """What the server says no to: an HTTP status and a sentence that says why and what to do."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


def too_large(limits: Limits) -> RequestError:
    """A file of more bytes than are taken."""
    return RequestError(
        413, f"the file is larger than {limits.max_file_mb:g} MB, the most that is taken; save it smaller"
    )
