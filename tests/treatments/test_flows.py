"""A number is changed where it comes from, in whatever way the file hands it over; a schedule's peak where that is set."""
import pytest

from gradcheck_doctor.errors import TreatmentRefused
from tests.treatments.test_styles import check, cured

SGD = "opt = torch.optim.SGD(net.parameters(), lr={}, momentum=0.9)\n"
HEAD = "import torch\n"
STYLES = {
    "a key with a default": ("cfg = {'lr': 4.0, 'm': 0.9}\n", "cfg.get('lr', 0.1)", "'lr': 4.0", "'lr': 0.04"),
    "a default of get": ("cfg = {'m': 0.9}\n", "cfg.get('lr', 4.0)", "'lr', 4.0", "'lr', 0.04"),
    "getattr": ("class C:\n    lr = 4.0\n", "getattr(C, 'lr', 0.1)", "lr = 4.0", "lr = 0.04"),
    "a field by its place": ("@dataclass\nclass C:\n    m: float = 0.9\n    lr: float = 0.1\ncfg = C(0.8, 4.0)\n", "cfg.lr", "0.8, 4.0", "0.8, 0.04"),
    "a class attribute": ("class C:\n    RATE = 4.0\n", "C.RATE", "RATE = 4.0", "RATE = 0.04"),
    "a replaced field": ("class C(NamedTuple):\n    lr: float = 0.1\ncfg = C()._replace(lr=4.0)\n", "cfg.lr", "lr=4.0", "lr=0.04"),
    "several at once": ("lr, m = 4.0, 0.9\n", "lr", "lr, m = 4.0", "lr, m = 0.04"),
    "an annotated constant": ("LR: float = 4.0\n", "LR", "= 4.0", "= 0.04"),
    "a table of rates": ("R = {'adam': 1e-3, 'sgd': 4.0}\n", "R[kind]", "'sgd': 4.0", "'sgd': 0.04"),
    "a list of rates": ("R = [1e-3, 4.0]\n", "R[1]", "4.0]", "0.04]"),
    "a function": ("def rate():\n    return 4.0\n", "rate()", "return 4.0", "return 0.04"),
    "a property": ("class C:\n    @property\n    def lr(self):\n        return 4.0\ncfg = C()\n", "cfg.lr", "return 4.0", "return 0.04"),
    "one of two": ("", "4.0 if big else 0.1", "4.0 if", "0.04 if"),
    "another if there is none": ("", "given or 4.0", "or 4.0", "or 0.04"),
    "float()": ("cfg = dict(lr=4.0)\n", "float(cfg['lr'])", "lr=4.0", "lr=0.04"),
    "a power": ("", "2 ** 2", "2 ** 2", "0.04"),
    "a product of names": ("BASE = 0.5\n", "BASE * 32 / 4", "BASE * 32 / 4", "0.04"),
    "a product further up": ("BASE = 0.5\nlr = BASE * 8\n", "lr", "BASE * 8", "0.04"),
    "a loop over what is written out": ("for name, lr in [('a', 4.0)]:\n    pass\n", "lr", "('a', 4.0)", "('a', 0.04)"),
    "click": ("@click.option('--lr', default=4.0)\ndef main(lr):\n    pass\n", "lr", "default=4.0", "default=0.04"),
    "set_defaults": ("p.set_defaults(lr=4.0)\nargs = p.parse_args()\n", "args.lr", "lr=4.0", "lr=0.04")}


@pytest.mark.parametrize("style", STYLES)
def test_a_rate_is_changed_where_it_comes_from(tmp_path, style):
    before, given, old, new = STYLES[style]
    if style == "click":
        text = HEAD + before.replace("    pass\n", "    " + SGD.format(given))
    else:
        text = HEAD + before + SGD.format(given)
    check(tmp_path, text, text.replace(old, new, 1), "learning-rate", where=SGD.format(given)[6:-1], lr=0.04, old=4.0)


@pytest.mark.parametrize("style", ["a function", "a list of rates", "several at once", "a property"])
def test_a_clip_whose_limit_was_not_seen_is_changed_where_that_is_certain(tmp_path, style):
    before, given, old, new = STYLES[style]
    clip = f"nn.utils.clip_grad_norm_(net.parameters(), {given})\n"
    check(tmp_path, HEAD + before + clip, (HEAD + before + clip).replace(old, new, 1), "clip-threshold", where=clip[:-1], max_norm=0.04)


def test_hyperparameters_that_lightning_saves(tmp_path):
    text = HEAD + ("class Net(LightningModule):\n    def __init__(self, width, lr=0.1):\n        super().__init__()\n        self.save_hyperparameters()\n\n"
                   "    def configure_optimizers(self):\n        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)\nnet = Net(8, 4.0)\n")
    check(tmp_path, text, text.replace("8, 4.0", "8, 0.04"), "learning-rate", where="torch.optim.SGD(self.parameters(), lr=self.hparams.lr)", lr=0.04, old=4.0)


@pytest.mark.parametrize(("before", "given"), [
    ("def make(base):\n    return torch.optim.SGD(net.parameters(), lr=base * 10, momentum=0.9)\nmake(0.4)\nmake(0.1)\n", "base * 10"),
    ("cfg = yaml.safe_load(open('c.yml'))\n" + SGD.format("cfg.lr"), "cfg.lr"),
    ("R = [4.0, 4.0]\n" + SGD.format("R[i]"), "R[i]")])
def test_what_cannot_be_told_is_said(tmp_path, before, given):
    with pytest.raises(TreatmentRefused, match="can't be told where"):
        cured(tmp_path, HEAD + before, "learning-rate", where=f"torch.optim.SGD(net.parameters(), lr={given}, momentum=0.9)", lr=0.04, old=4.0)


PEAKS = {
    "one cycle": ("s = OneCycleLR(opt, max_lr=8.0, total_steps=100)\n", "max_lr=8.0", "max_lr=0.08"),
    "by its place": ("PEAK = 8.0\ns = lr_scheduler.OneCycleLR(opt, PEAK, total_steps=100)\n", "PEAK = 8.0", "PEAK = 0.08"),
    "cyclic": ("s = CyclicLR(opt, 0.1, 8.0)\n", "0.1, 8.0", "0.1, 0.08"),
    "a factor": ("s = LambdaLR(opt, lambda i: min(i, 80))\n", "lr=0.1", "lr=0.001")}


@pytest.mark.parametrize("style", PEAKS)
def test_the_peak_of_a_schedule(tmp_path, style):
    schedule, old, new = PEAKS[style]
    text = HEAD + SGD.format(0.1) + schedule
    check(tmp_path, text, text.replace(old, new), "learning-rate", where=SGD.format(0.1)[6:-1], lr=0.08, old=8.0, peak=True)


def test_a_base_rate_that_is_computed_is_scaled(tmp_path):
    text = HEAD + SGD.format("load()['base']") + "s = LambdaLR(opt, warm)\n"
    check(tmp_path, text, text.replace("lr=load()", "lr=0.01 * load()"), "learning-rate", where=SGD.format("load()['base']")[6:-1], lr=0.08, old=8.0, peak=True)


@pytest.mark.parametrize(("later", "after"), [
    ("group['lr'] = 9.0", "group['lr'] = 0.09"),
    ("group['lr'] = 0.1 * min(step, 90)", "group['lr'] = 0.01 * (0.1 * min(step, 90))"),
    ("group['lr'] = rate(step)", "group['lr'] = 0.01 * rate(step)")])
def test_a_rate_that_the_loop_sets(tmp_path, later, after):
    text = HEAD + SGD.format(0.1) + f"for group in opt.param_groups:\n    {later}\n"
    check(tmp_path, text, text.replace(later, after), "learning-rate", where=SGD.format(0.1)[6:-1], lr=0.09, old=9.0)


def test_values_that_come_from_themselves_are_left_alone(tmp_path):
    before = "def f(x, y):\n    x = x[0]\n    y = y if x else x or y\n    x, y = y, x\n    for x in [x, y]:\n        y = x[y]\n    return f(x, y)\n"
    text = HEAD + before + SGD.format("f(x, y)")
    with pytest.raises(TreatmentRefused, match="can't be told"):
        cured(tmp_path, text, "learning-rate", where=SGD.format("f(x, y)")[6:-1], lr=0.04, old=4.0)


def test_values_that_can_come_from_many_places_are_left_alone(tmp_path):
    names = "abcdefgh"
    before = "".join(f"{a} = {b} if c0 else {c}\n" for a in names for b in names for c in names)
    text = HEAD + before + SGD.format("a")
    with pytest.raises(TreatmentRefused, match="can't be told"):
        cured(tmp_path, text, "learning-rate", where=SGD.format("a")[6:-1], lr=0.04, old=4.0)
