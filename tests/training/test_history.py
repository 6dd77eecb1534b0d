"""Scores of an epoch and rows of ``history.csv``."""

from __future__ import annotations

import math

import pytest
import torch

from featkit.api.progress import epoch_line
from featkit.training.history import (
    EpochRecord,
    batch_sums,
    history_numbers,
    history_rows,
    score_from_sums,
)


def record(classes: int) -> EpochRecord:
    labels = torch.arange(12) % classes
    logits = 100 * torch.nn.functional.one_hot(labels, classes).float()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    score = score_from_sums(batch_sums(loss, logits, labels) + batch_sums(loss, logits, labels))
    return EpochRecord(0, 1.0, score, score, 1.0)


@pytest.mark.parametrize(("classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_is_absent_for_five_classes_or_fewer(classes: int, has_top5: bool) -> None:
    """In the line of an epoch, in history.csv, in its numbers, and after a checkpoint."""
    found = record(classes)
    assert ("top-5" in epoch_line(found, 2)) == has_top5
    (row,) = history_rows([found])
    assert (row["train_top5"] != "") == (row["val_top5"] != "") == has_top5
    (numbers,) = history_numbers([found])
    assert math.isnan(numbers["val_top5"]) != has_top5
    assert EpochRecord.from_list(found.to_list()) == found


def test_a_loss_of_zero_is_not_printed_as_minus_zero() -> None:
    score = score_from_sums(torch.tensor([-0.0, 12.0, 12.0, 12.0], dtype=torch.float64))
    assert "loss 0.000" in epoch_line(EpochRecord(0, 1.0, score, None, 1.0), 2)
