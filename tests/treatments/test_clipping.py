"""The clip's line moves between backward and step, or the gradients are unscaled before it; everything else stays."""
import textwrap

import pytest

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Finding, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.plan import planners
from gradcheck_doctor.treatments.tree import applied

CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"


def treated(tmp_path, treatment, text):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    source = path.read_text()
    line = next(i for i, row in enumerate(source.splitlines(), 1) if "clip_grad" in row)
    row = source.splitlines()[line - 1]
    start = row.index(CLIP) if CLIP in row else row.index("torch.nn.utils")
    prescription = Prescription(treatment, "", kind="clip", span=Span(str(path), line, start + 1))
    edits = planners()[treatment](Context(str(path), ()), Finding("GD404", "misplaced-clip", "error", ""), prescription)
    return applied(source, edits)


def loop(*lines):
    return "for x, y in data:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize("place", [1, 4], ids=["early", "late"])
@pytest.mark.parametrize("clip", [CLIP, f"norm = {CLIP}  # at most 1"])
def test_the_clip_moves_in_front_of_the_step(tmp_path, place, clip):
    lines = ["optimizer.zero_grad()", "loss = f(model(x), y)", "loss.backward()", "optimizer.step()", "scheduler.step()"]
    sick = lines[:place] + [clip] + lines[place:]
    assert treated(tmp_path, "move-clip", loop(*sick)) == loop(*lines[:3], clip, *lines[3:])


def test_a_step_inside_a_condition_takes_the_clip_with_it(tmp_path):
    sick = loop(CLIP, "loss.backward()", "if i % 4 == 3:", "    optimizer.step()")
    assert treated(tmp_path, "move-clip", sick) == loop("loss.backward()", "if i % 4 == 3:", f"    {CLIP}", "    optimizer.step()")


@pytest.mark.parametrize("sick", [loop(CLIP, "loss.backward()"), loop(f"{CLIP}; loss.backward()", "optimizer.step()"),
                                  loop("if clip:", f"    {CLIP}", "loss.backward()", "optimizer.step()")], ids=["no step", "two on a line", "alone in an if"])
def test_what_is_not_plain_is_left_to_a_person(tmp_path, sick):
    with pytest.raises(TreatmentRefused, match="by hand"):
        treated(tmp_path, "move-clip", sick)


def test_unscale_goes_in_front_of_the_clip(tmp_path):
    sick = loop("scaler.scale(loss).backward()", CLIP, "scaler.step(optimizer)", "scaler.update()")
    assert treated(tmp_path, "unscale", sick) == loop("scaler.scale(loss).backward()", "scaler.unscale_(optimizer)", CLIP, "scaler.step(optimizer)",
                                                     "scaler.update()")


def test_unscale_needs_the_scalers_step(tmp_path):
    with pytest.raises(TreatmentRefused, match="unscale_"):
        treated(tmp_path, "unscale", loop("scaler.scale(loss).backward()", CLIP, "optimizer.step()"))
