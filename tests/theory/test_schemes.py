"""Recognising a scheme, tested on real draws."""
import pytest
import torch
from torch import nn

from gradcheck_doctor.observe.parameters import parameter_record

DRAWS = {
    "torch default (kaiming_uniform a=sqrt(5))": lambda w: None,
    "he normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "he uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "glorot uniform": nn.init.xavier_uniform_,
    "glorot normal": nn.init.xavier_normal_,
    "lecun normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "selu gain 3/4 normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="selu"),
    "orthogonal": nn.init.orthogonal_,
    "zeros": nn.init.zeros_,
    "normal std=0.02": lambda w: nn.init.normal_(w, std=0.02),
}


@pytest.mark.parametrize("name", DRAWS)
def test_scheme_of_a_fresh_draw_is_named(name):
    layer = nn.Linear(300, 100)
    DRAWS[name](layer.weight)
    record = parameter_record("weight", "", layer.weight, layer)
    assert record.scheme == name
    assert not record.trained


def test_heavy_tailed_weights_are_trained_or_loaded():
    layer = nn.Linear(300, 100)
    layer.weight.data.copy_(torch.randn(100, 300) ** 3)
    assert parameter_record("weight", "", layer.weight, layer).trained


@pytest.mark.parametrize(("layer", "expected"), [
    (nn.Conv2d(8, 32, 3, groups=2), (36, 144)), (nn.ConvTranspose2d(8, 32, 3), (72, 288)), (nn.Linear(5, 7), (5, 7)), (nn.Bilinear(3, 4, 6), (12, 6))])
def test_fans_agree_with_the_variance_of_a_unit_sum(layer, expected):
    record = parameter_record("weight", "", layer.weight, layer)
    assert (record.fan_in, record.fan_out) == expected


@pytest.mark.parametrize("layer", [nn.Linear(64, 1), nn.Linear(40, 5)], ids=str)
def test_the_default_of_a_small_layer_is_not_taken_for_another_shape(layer):
    for seed in range(40):
        torch.manual_seed(seed)
        layer.reset_parameters()
        assert parameter_record("weight", "", layer.weight, layer).scheme == "torch default (kaiming_uniform a=sqrt(5))"


def test_an_embedding_starts_with_standard_deviation_1():
    torch.manual_seed(0)
    table = nn.Embedding(50, 32)
    assert parameter_record("weight", "", table.weight, table).scheme == "normal std=1"


def test_few_numbers_of_a_layer_of_torchs_are_taken_for_its_default():
    """32 uniform numbers pass for many a family; a layer that nobody initialised has its own."""
    from gradcheck_doctor.observe.parameters import parameter_record
    for seed in range(60):
        torch.manual_seed(seed)
        layer = torch.nn.Linear(32, 1)
        assert parameter_record("weight", "", layer.weight, layer).scheme.startswith("torch default"), seed
