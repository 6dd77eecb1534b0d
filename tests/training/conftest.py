"""Small trainings on digits."""

import pytest
import torch

from featkit.embeddings.pipeline import Compute
from featkit.embeddings.request import Request
from featkit.training.config import TrainingConfig
from featkit.training.finetune import finetune
from featkit.training.loop import ExecutionConfig
from featkit.training.prepare import prepare

COMPUTE = Compute(device="cpu")
SMALL = {"data": "digits", "limit": "train=40,val=10,test=20", "resize": "8", "precision": "fp32"}


@pytest.fixture
def make_config(tmp_path):
    """Return a function that makes a small configuration; fields of ``Request`` go there."""

    def make(*, augment=None, views=2, val=0.1, **options):
        request = {**SMALL, "backbone": "resnet18:stem=small", "weights": "random:3"}
        request |= {
            name: options.pop(name)
            for name in list(options)
            if name in Request.__dataclass_fields__ and name != "seed"
        }
        options = {"epochs": 2, "batch_size": 8, "warmup": 0, **options}
        paths = {"request": Request(**request), "cache": tmp_path / "cache"}
        return TrainingConfig(augment=augment, views=views, val=val, **paths, **options)

    return make


@pytest.fixture
def trained(make_config):
    """Return a function that trains."""

    def make(*, execution=None, **options):
        return finetune(
            prepare(make_config(**options), COMPUTE), execution or ExecutionConfig(COMPUTE)
        )

    return make


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
