"""The exact expression, in every style of building a model."""
import textwrap

import pytest

from gradcheck_doctor.targets.resolve import resolve

STYLES = {
    "one line": ("model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n", {"0": "nn.Linear(4, 8)", "2": "nn.Linear(8, 2)"}),
    "comprehension": ("model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])\n", {"1": "nn.Linear(4, 4)"}),
    "append": ("layers = []\nfor i in range(2):\n    layers.append(nn.Linear(4, 4))\nmodel = nn.Sequential(*layers)\n", {"1": "nn.Linear(4, 4)"}),
    "factory": ("def block(i, o):\n    return nn.Linear(i, o)\nmodel = nn.Sequential(block(4, 8), block(8, 2))\n", {"1": "nn.Linear(i, o)"}),
    "add_module": ("model = nn.Sequential()\nmodel.add_module('fc', nn.Linear(4, 2))\n", {"fc": "nn.Linear(4, 2)"}),
    "setattr": ("class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        setattr(self, 'é', nn.Linear(4, 2))\n    def forward(self, x):\n"
                "        return getattr(self, 'é')(x)\n", {"é": "nn.Linear(4, 2)"}),
    "subclass": ("class Mine(nn.Linear):\n    def __init__(self, n):\n        super().__init__(n, n)\nmodel = nn.Sequential(Mine(4), Mine(4))\n", {"1": "Mine(4)"}),
    "config": ("CONFIG = {'act': 'ReLU'}\nmodel = nn.Sequential(nn.Linear(4, 4), getattr(nn, CONFIG['act'])(), nn.Linear(4, 2))\n",
               {"1": "getattr(nn, CONFIG['act'])()"}),
}


@pytest.mark.parametrize("name", STYLES)
def test_the_constructing_expression_is_found(name, tmp_path):
    text, expected = STYLES[name]
    path = tmp_path / "model_file.py"
    path.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(text))
    (target,) = resolve(str(path))
    lines = path.read_text().splitlines()
    modules = dict(target.model.named_modules())
    for module, source in expected.items():
        span = target.log.spans.get(modules[module])
        assert lines[span.line - 1][span.column - 1: span.end_column - 1] == source


def test_inference_of_inputs(tmp_path):
    cases = {
        "nn.Sequential(nn.Linear(7, 3))": "float32[32,7]", "nn.Sequential(nn.Conv1d(5, 4, 3), nn.ReLU())": "float32[32,5,64]",
        "nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))": "float32[32,3,32,32]",
        "nn.Sequential(nn.Conv2d(1, 6, 5), nn.Flatten(), nn.Linear(6*24*24, 2))": "float32[32,1,28,28]",
        "nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 2))": "int64[32,16]", "nn.LSTM(6, 5, batch_first=True)": "float32[32,16,6]",
        "nn.Conv3d(2, 3, 3)": "float32[4,2,16,16,16]", "nn.Transformer(16, 2, 1, 1, 32, batch_first=True)": "(float32[32,16,16], float32[32,16,16])",
    }
    for number, (expression, shape) in enumerate(cases.items()):
        path = tmp_path / f"case_{number}.py"
        path.write_text(f"from torch import nn\nmodel = {expression}\n")
        (target,) = resolve(str(path))
        assert target.choices["batch"] == f"inferred from the layers: {shape}", expression


def test_equal_files_at_two_paths_are_told_apart(tmp_path):
    """Python holds code objects of the same text for equal, whatever their file."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text("from torch import nn\nmodel = nn.Sequential(nn.Linear(4, 2))\n")
    for folder in ("a", "b"):
        (target,) = resolve(str(tmp_path / folder / "net.py"))
        assert target.log.spans.get(target.model[0]).file == str(tmp_path / folder / "net.py")


def test_a_model_made_at_import_is_built_under_the_seed(tmp_path):
    path = tmp_path / "seeded_file.py"
    path.write_text("from torch import nn\nmodel = nn.Linear(4, 2)\n")
    first, second = (resolve(str(path))[0].model.weight for _ in range(2))
    assert (first == second).all()
