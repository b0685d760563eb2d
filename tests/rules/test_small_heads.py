"""An output layer that was started near 0 on purpose does not make its run of layers sick."""
import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.observe.provenance import recording_construction

X = torch.randn(256, 8)


def policy(head, hidden=None, layers=3):
    torch.manual_seed(0)
    net = nn.Sequential(*(m for i in range(layers - 1) for m in (nn.Linear(64 if i else 8, 64), nn.Tanh())), nn.Linear(64, 4))
    if hidden is not None:
        for m in net[:-1]:
            if isinstance(m, nn.Linear):
                hidden(m.weight)
    head(net[-1].weight)
    return net


def found(build, x):
    with recording_construction():                      # as for a file: where weights were drawn is known
        return [f for f in doctor.audit(build(), x).findings if f.code in ("GD102", "GD103")]


@pytest.mark.parametrize("head", [lambda w: nn.init.orthogonal_(w, 0.01), lambda w: nn.init.normal_(w, std=0.01)])
def test_a_small_head_is_not_counted(head):
    findings = found(lambda: policy(head), X)
    assert {f.severity for f in findings} <= {"info"}
    assert all("2 layers with torch default" in f.message for f in findings)


def test_small_weights_in_all_layers_are():
    findings = found(lambda: policy(lambda w: nn.init.normal_(w, std=0.01), lambda w: nn.init.normal_(w, std=0.01), layers=4), X)
    assert [f.severity for f in findings if f.code == "GD103"] == ["error"]


def test_a_deep_run_in_front_of_a_small_head_is():
    assert [f.severity for f in found(lambda: policy(lambda w: nn.init.normal_(w, std=0.01), layers=9), X) if f.code == "GD102"] == ["error"]


def test_each_way_to_draw_weights_is_named():
    """As torchvision's VGG does: He in the convolutions, N(0, 0.01) in the classifier."""
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = [(1, 32), (32, 32), (32, 32)]
            self.features = nn.Sequential(*(m for i, o in sizes for m in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())), nn.AdaptiveAvgPool2d(4), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
            for m in self.modules():
                if isinstance(m, nn.Conv2d):
                    nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(m, nn.Linear):
                    nn.init.normal_(m.weight, 0, 0.01)

        def forward(self, x):
            return self.head(self.features(x))

    torch.manual_seed(0)
    findings = found(Classifier, torch.randn(32, 1, 8, 8))
    assert {f.severity for f in findings} == {"info"}
    assert any("he normal (3), normal std=0.01 (1)" in f.message for f in findings)
