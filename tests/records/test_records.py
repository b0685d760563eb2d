import json
import math
from dataclasses import replace

import pytest
import torch
from records_sample import report

from gradcheck_doctor.errors import ConfigError
from gradcheck_doctor.observe.collector import Collector
from gradcheck_doctor.records.codec import from_json, to_json
from gradcheck_doctor.records.sites import Span


def summarise(x, limit=10**6):
    collector = Collector(limit)
    collector.put(x)
    return collector.finish()[0]


def test_summary_of_two_chunks_equals_summary_of_the_whole():
    """Merging is exact, so a recording may be split at any step."""
    x = torch.randn(100, 8, dtype=torch.float64)
    merged = summarise(x[:37]).merge(summarise(x[37:]))
    assert merged.std == pytest.approx(x.std(unbiased=False).item(), rel=1e-6)
    assert merged.rms == pytest.approx(x.square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(64, 32), (8, 3, 16, 16), (200, 7), (5,), ()])
def test_sampled_statistics_agree_with_a_slow_oracle(shape):
    x = torch.randn(shape) * 3 + 1
    seen = summarise(x, limit=1024)
    assert seen.norm == pytest.approx(x.norm().item(), rel=1e-4)
    largest = x.abs().max().item()
    assert seen.absmax == pytest.approx(largest, rel=1e-5) if not seen.sampled else 0.3 * largest < seen.absmax <= largest
    assert seen.rms == pytest.approx(x.square().mean().sqrt().item(), rel=1e-3)
    if len(shape) > 1:
        assert seen.sample_std == pytest.approx(x.flatten(1).var(0, unbiased=False).mean().sqrt().item(), rel=0.2)


def test_nan_surfaces_from_any_single_element():
    x = torch.randn(1000, 1000)
    x[777, 3] = math.nan
    assert not summarise(x, limit=64).finite


def test_json_is_strict_and_comes_back_the_same():
    data = to_json(report())
    text = json.dumps(data, allow_nan=False)
    assert to_json(from_json(json.loads(text))) == data


def test_a_wrong_file_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match="--format json"):
        from_json({"hello": 1})
    with pytest.raises(ConfigError, match="upgrade"):
        from_json({**to_json(report()), "schema_version": 99})


def test_fingerprint_does_not_depend_on_line_or_figures():
    finding = report().findings[0]
    moved = replace(finding, message="other", location=Span("m.py", 99, 1))
    assert finding.fingerprint == moved.fingerprint
    assert finding.fingerprint != replace(finding, module="z").fingerprint


def test_fingerprint_is_that_of_every_checkout(tmp_path):
    finding = replace(report().findings[0], location=None)

    def at(*path):
        file = tmp_path.joinpath(*path)
        file.parent.mkdir(parents=True, exist_ok=True)
        return replace(finding, location=Span(str(file), 3, 5)).fingerprint

    for checkout in ("a", "moved/elsewhere"):
        (tmp_path / checkout).mkdir(parents=True)
        (tmp_path / checkout / "pyproject.toml").touch()
    assert at("a", "net", "m.py") == at("moved", "elsewhere", "net", "m.py")
    assert at("a", "net", "m.py") != at("a", "old", "m.py")
    assert at("env", "lib", "python3.11", "site-packages", "nets", "m.py") == at("a", ".venv", "lib", "python3.12", "site-packages", "nets", "m.py")


def test_a_report_keeps_its_fingerprints_wherever_it_is_read(tmp_path, monkeypatch):
    written = to_json(report())
    monkeypatch.chdir(tmp_path)
    again = from_json(written)
    assert [f.fingerprint for f in again.findings] == [f.fingerprint for f in report().findings]
    assert again.findings[0].related == (again.findings[1].fingerprint,)
