"""What the user's own code raises is said as theirs; names that a package makes on demand are found."""
import types

import pytest
import torch
from torch import nn

import gradcheck_doctor as doctor
from gradcheck_doctor.errors import BatchError, TargetError
from gradcheck_doctor.targets.infer import infer
from gradcheck_doctor.targets.resolve import Options, resolve

HEAD = "import torch\nfrom torch import nn\nmodel = nn.Linear(4, 4)\n"
LOADER = "loader = torch.utils.data.DataLoader({}, batch_size=2)\n"
BROKEN = {
    "batch function": (HEAD + "def get_batch():\n    return open('nowhere.csv')\n", {}, r"get_batch\(\) raised FileNotFoundError.*nowhere.csv"),
    "batch function with arguments": (HEAD + "def get_batch(split):\n    return None\n", {}, r"get_batch\(\) raised TypeError.*split"),
    "loader": (HEAD + "class D(torch.utils.data.Dataset):\n    def __len__(self):\n        return 4\n    def __getitem__(self, i):\n"
               "        raise OSError('disk gone')\n" + LOADER.format("D()"), {}, "first batch of loader raised OSError: disk gone"),
    "empty loader": (HEAD + LOADER.format("[]"), {}, "loader is empty"),
    "unknown device": (HEAD, {"device": "foo"}, "--device foo"),
    "two batches": (HEAD, {"batch": "torch.randn(2, 4)", "inputs": ("float32[2,4]",)}, "--batch and --input both"),
    "no integer below 0": (HEAD, {"inputs": ("int64[2,4]<0",)}, "is not understood"),
    "one input too many": (HEAD, {"inputs": ("float32[2,4]", "float32[2,4]")}, "positional argument"),
    "optimizer": (HEAD, {"optimizer": "1/0"}, "--optimizer 1/0: ZeroDivisionError"),
    "no optimizer": (HEAD, {"optimizer": "3"}, "--optimizer 3 is int, not a torch optimizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_file_raises_is_no_internal_error(name, tmp_path):
    source, options, said = BROKEN[name]
    (tmp_path / "m.py").write_text(source)
    with pytest.raises((TargetError, BatchError), match=said):
        for target in resolve(str(tmp_path / "m.py"), Options(**options)):
            target.compute_loss(target.model)


def test_a_module_without_a_forward_is_asked_for_its_batch():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def training_step(self, batch, index):
            return self.layer(batch).sum()

    with pytest.raises(BatchError, match="training_step takes a batch.*\nTry: --batch"):
        infer(Step())


def test_a_colon_in_a_path_is_part_of_it(tmp_path):
    folder = tmp_path / "run 12:30"
    folder.mkdir()
    (folder / "m.py").write_text(HEAD)
    assert resolve(str(folder / "m.py"))[0].name == str(folder / "m.py")
    assert resolve(f"{folder / 'm.py'}:nn.Linear(3, 2)")[0].model.in_features == 3


def test_files_of_a_folder_that_are_passed_over_are_named(tmp_path):
    (tmp_path / "good.py").write_text("from torch import nn\nmodel = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n")
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "asks.py").write_text("from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width):\n        super().__init__()\n")
    (tmp_path / "helpers.py").write_text("x = 1\n")
    said = []
    target, = resolve(str(tmp_path), say=lambda text, broken: said.append((text.partition("passed over ")[2].partition(": ")[0], broken)))
    assert target.name.endswith("good.py")
    assert said == [(str(tmp_path / "asks.py"), False), (str(tmp_path / "broken.py"), True)]


def test_nan_in_the_inputs_is_refused_and_in_the_targets_is_a_finding():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(4, 1), torch.randn(8, 4), torch.full((8, 1), float("nan"))
    assert "GD803" in [f.code for f in doctor.audit(model, (inputs, targets), loss=nn.MSELoss()).findings]
    inputs[3, 2] = float("nan")
    with pytest.raises(BatchError, match=r"NaN \(1 of 32 values"):
        doctor.audit(model, inputs)


def test_an_optimizer_function_that_raises_is_named(tmp_path):
    (tmp_path / "m.py").write_text(HEAD + "def make_optimizer(model):\n    raise ValueError('no rate')\n")
    target, = resolve(str(tmp_path / "m.py"))
    with pytest.raises(TargetError, match=r"make_optimizer\(model\) raised ValueError: no rate"):
        target.optimizer_factory(target.model)


def test_names_made_on_demand_are_found(tmp_path, monkeypatch):
    (tmp_path / "lazy_zoo.py").write_text(
        "from torch import nn\ndef __getattr__(name):\n    if name == 'Tiny':\n        return nn.Linear\n    if name == 'Costly':\n"
        "        raise ImportError('needs scipy')\n    raise AttributeError(name)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("lazy_zoo:Tiny(3, 2)")[0].model.out_features == 2
    assert resolve("lazy_zoo:lazy_zoo.Tiny(3, 5)")[0].model.out_features == 5
    with pytest.raises(TargetError, match="needs scipy"):
        resolve("lazy_zoo:Costly()")
    with pytest.raises(TargetError, match="NameError"):
        resolve("lazy_zoo:Missing()")


def test_one_error_for_all_inputs_is_said_once():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            raise ValueError("my own problem")

    from gradcheck_doctor.targets.infer import infer

    with pytest.raises(BatchError, match="that were tried raised ValueError: my own problem") as refused:
        infer(Net())
    assert str(refused.value).count("my own problem") == 1


def test_a_model_whose_classes_cannot_be_built_is_not_recommended(tmp_path):
    (tmp_path / "m.py").write_text("from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        raise RuntimeError('no weights')\n")
    with pytest.raises(TargetError, match="no weights") as refused:
        resolve(str(tmp_path / "m.py"))
    assert "Try:" not in str(refused.value)


def test_our_own_cotangent_is_no_step_of_the_spine():
    """Its product with the output has gradient 1 everywhere; an encoder without a loss has nothing to report."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 3, enable_nested_tensor=False)
    assert [f.code for f in doctor.audit(encoder, torch.randn(16, 8, 32)).findings] == []


def test_weights_that_follow_the_right_scheme_are_no_mismatch():
    """A deep tanh net with Glorot weights loses what theory says only where the signal is large."""
    torch.manual_seed(0)
    layers = [m for i in range(20) for m in (nn.Linear(64, 64), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    report = doctor.audit(nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(128, 64))
    assert "GD102" not in [f.code for f in report.findings]


def test_a_zero_head_has_nothing_to_report():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    report = doctor.audit(model, (torch.randn(256, 32), torch.randint(0, 10, (256,))), loss=nn.CrossEntropyLoss())
    assert [f.code for f in report.findings] == []


def test_a_subclass_of_a_torch_layer_is_blamed_where_it_is_built(tmp_path):
    """Its forward is torch's; the loop's expression stands for the run, not the input layer's."""
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\nclass Mine(nn.Linear):\n    def __init__(self, a, b):\n        super().__init__(a, b)\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.first = Mine(8, 32)\n"
        "        self.body = nn.ModuleList([Mine(32, 32) for _ in range(9)])\n        self.out = Mine(32, 4)\n"
        "    def forward(self, x):\n        x = self.first(x).relu()\n        for layer in self.body:\n            x = layer(x).relu()\n"
        "        return self.out(x)\nexample_inputs = torch.randn(64, 8)\n")
    from gradcheck_doctor.session import audit_target

    finding = audit_target(resolve(str(tmp_path / "m.py"))[0]).report.findings[0]
    assert (finding.code, finding.module) == ("GD102", "body.0")
    assert (finding.location.line, finding.location.column, finding.location.end_column) == (10, 36, 48)


def test_a_configuration_without_a_limit_of_positions():
    """As transformers' XLNet has it."""
    class Model(torch.nn.Module):
        main_input_name = "input_ids"

        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(50, 4)
            self.config = types.SimpleNamespace(vocab_size=50, max_position_embeddings=-1, to_dict=dict)

        def forward(self, input_ids):
            return self.embed(input_ids)

    assert infer(Model(), 0)["input_ids"].shape == (4, 16)
