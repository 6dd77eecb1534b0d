"""BatchNorms that were folded into scale and shift."""

import torch
from torch import nn

from featkit.backbones import load_backbone
from featkit.backbones.batchnorm import has_statistics, restore_statistics
from featkit.training.config import TrainingConfig
from featkit.training.network import make_classifier, set_train_mode

BACKBONE = load_backbone("resnet18:stem=small", weights="random")
SETTINGS = TrainingConfig(mode="full")


def folded_network():
    """A network whose BatchNorms are only a scale and a shift, different in each channel."""
    torch.manual_seed(0)
    model = make_classifier(BACKBONE, 3, SETTINGS, size=(16, 16))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return model


def images(n=32):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_restored_statistics_leave_outputs_unchanged_in_eval_mode():
    model, batch = folded_network().eval(), images()
    before = model(batch)[0].detach()
    assert not has_statistics(model.body.network)
    restore_statistics(model, [batch[:16], batch[16:]])
    assert has_statistics(model.body.network)
    assert torch.allclose(model(batch)[0], before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_restored_statistics_nearly_preserve_outputs_in_train_mode():
    """Without restored statistics, the batch would be normalised twice."""
    batch, outputs = images(), []
    for restored in (False, True):
        model = folded_network().eval()
        if restored:
            restore_statistics(model, [batch])
        expected = model(batch)[0].detach()
        set_train_mode(model, SETTINGS)
        outputs.append(float((model(batch)[0].detach() - expected).norm() / expected.norm()))
    assert outputs[1] < 0.02 < outputs[0]


def test_only_the_given_parts_get_statistics():
    model = make_classifier(BACKBONE, 3, TrainingConfig(mode="deep"), size=(16, 16))
    before = model.body.network.layer1[0].bn1.weight.clone()
    restore_statistics(
        model, [torch.rand(4, 256 * 4 * 4)], [part for _, part in model.body.trainable_parts()]
    )
    assert torch.equal(model.body.network.layer1[0].bn1.weight, before)
    assert model.body.network.layer4[0].bn1.running_mean.abs().max() > 0


def test_a_partly_folded_network_has_no_statistics():
    network = folded_network().body.network
    network.bn1.running_mean += 1
    assert not has_statistics(network)


def test_a_network_without_batchnorm_has_all_its_statistics():
    assert has_statistics(nn.Sequential(nn.Conv2d(3, 3, 1)))
