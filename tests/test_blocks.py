import numpy as np

from featkit.blocks import release_pages, row_blocks


def test_blocks_cover_all_rows_in_order():
    x = np.arange(70).reshape(10, 7)
    found = list(row_blocks(x, values=21))
    assert [part for part, _ in found] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in found]), x)


def test_pages_that_were_given_back_are_read_again(tmp_path):
    x = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    np.save(tmp_path / "x.npy", x)
    view = np.asarray(np.load(tmp_path / "x.npy", mmap_mode="r")[10:])
    release_pages(view)
    np.testing.assert_array_equal(view, x[10:])


def test_changes_in_a_private_mapping_are_kept(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((100, 100)))
    x = np.load(tmp_path / "x.npy", mmap_mode="c")
    x[3] = 1
    release_pages(x)
    assert x.sum() == 100
