"""Images that a page is given: uploaded files, photos and images of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from featkit.app.views import error_text
from featkit.errors import FeatkitError, visible
from featkit.images.base import ImageSet, Pixels
from featkit.images.decode import decode
from featkit.images.intensity import IntensityRange
from featkit.images.thumbnails import shrink

_SHOWN_SIDE = 320


@dataclass(frozen=True)
class GivenImage:
    """An image to classify.

    Attributes:
        key: differs between images of different content.
        name: of the file.
        decode: from intensity range and shorter edge, see ``images.decode.decode``, to the pixels.
            Raises DecodeError.
        true: name of its class, where it is known.
    """

    key: str
    name: str
    decode: Callable[[IntensityRange | None, int | None], Pixels]
    true: str | None = None


def uploaded_image(name: str, data: bytes) -> GivenImage:
    """Return an uploaded file as an image; it is decoded when it is classified."""
    key = hashlib.sha256(name.encode("utf-8", "surrogatepass") + b"\0" + data).hexdigest()
    return GivenImage(key, name, lambda intensity, edge: decode(data, name, intensity, edge=edge))


def data_set_images(images: ImageSet, rows: list[int]) -> list[GivenImage]:
    """Return images of a data set, with their classes."""

    def decoder(row: int) -> Callable[[IntensityRange | None, int | None], Pixels]:
        def load(intensity: IntensityRange | None, edge: int | None) -> Pixels:
            return (images if edge is None else images.decoded_for(edge)).load(row)

        return load

    given = []
    for row in rows:
        true = images.classes[images.labels[row]]
        key = f"{images.name}:{images.key(row)}"
        given.append(GivenImage(key, images.ids[row], decoder(row), true))
    return given


@dataclass(frozen=True)
class DecodedImage:
    """An image that was decoded, or the reason why it was not.

    Attributes:
        thumbnail: uint8 ``(h, w, 3)``; None if it cannot be read.
        size: width and height of the image in pixels.
        error: why it cannot be read, in one line; empty if it can.
    """

    thumbnail: Pixels | None
    size: tuple[int, int]
    error: str = ""


def read_given(
    image: GivenImage, intensity: IntensityRange | None = None, edge: int | None = None
) -> tuple[Pixels | None, DecodedImage]:
    """Decode an image, as ``images.decode.decode``; what is wrong with it is returned as text."""
    try:
        pixels = image.decode(intensity, edge)
    except MemoryError:
        reason = f"{visible(image.name)} needs more memory than there is: use a smaller image"
        return None, DecodedImage(None, (0, 0), reason)
    except FeatkitError as error:
        return None, DecodedImage(None, (0, 0), error_text(error))
    height, width = pixels.shape[:2]
    return pixels, DecodedImage(shrink(pixels, _SHOWN_SIDE), (width, height))
