"""Image sets from lists of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from featkit.images.files import images_from_files
from featkit.storage import safe_name


def put(root: Path, *names: str) -> Path:
    """Write one-pixel images to these paths; the grey value is the position in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1), number).save(root / name)
    return root


def test_image_files_keep_their_order(tmp_path):
    put(tmp_path, "2.png", "1.png")
    images = images_from_files([tmp_path / "2.png", str(tmp_path / "1.png"), tmp_path / "2.png"])
    assert images.ids == tuple(str(tmp_path / name) for name in ("2.png", "1.png", "2.png"))
    assert [images.load(row).max() for row in range(3)] == [0, 1, 0]
    assert images.classes == ("",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eurosat", "eurosat"),
        ("my photos (2)", "my_photos_2"),
        (".hidden", "hidden"),
        ("a-b_c.d", "a-b_c.d"),
        ("図", "images"),
        ("", "images"),
    ],
)
def test_unsafe_characters_of_names_are_replaced(name, expected):
    assert safe_name(name) == expected
