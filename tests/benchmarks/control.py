"""`python -m tests.benchmarks.control FOLDER`: how many sick scripts do treatments cure that are drawn blindly?

FOLDER holds training scripts (NAME.py) that take --seed and print `RESULT {"value": ...}`, each with a NAME.json that gives kind ("faulty"), broken_value
and healthy_value. For each of several draws one treatment that can be applied at all is taken at random from the menu that `doctor fix` compares its own
fixes with, written into the script without any proof, and the script is run with several seeds. Cured: the mean value covers four fifths of the way from
broken to healthy. This is the figure beside which the share that `doctor fix` repairs has to be read.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.codec import from_json
from gradcheck_doctor.records.findings import ReportData
from gradcheck_doctor.treatments.menu import blind
from gradcheck_doctor.treatments.tree import applied, read

SECONDS = 180
COVERED = 0.8          # share of the way from broken to healthy that counts as cured


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.control", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    labels = [label for label in sorted(options.folder.glob("*.json")) if json.loads(label.read_text())["kind"] == "faulty"]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda label: _show(drawn(label, options.draws, options.seeds)), labels))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))
    cured = [sum(draw < len(row["draws"]) and row["draws"][draw]["cured"] for row in rows) for draw in range(options.draws)]
    print(f"cured by a treatment drawn blindly: {', '.join(str(c) for c in cured)} of {len(rows)} (one figure a draw), mean {statistics.mean(cured):.1f}")


def _show(row: dict[str, Any]) -> dict[str, Any]:
    print(f"{row['script']:32}", "; ".join(f"{d['title']}: {d['value']:.3f}{' cured' if d['cured'] else ''}" for d in row["draws"]), file=sys.stderr, flush=True)
    return row


def drawn(label_file: Path, draws: int, seeds: int) -> dict[str, Any]:
    """One script, each time with another treatment: {"script", "draws": [{"title", "value", "cured"}, ...]}."""
    label = json.loads(label_file.read_text())
    broken, healthy = label["broken_value"], label["healthy_value"]
    row: dict[str, Any] = {"script": label_file.stem, "draws": []}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / f"{label_file.stem}.py"
        shutil.copy(label_file.with_suffix(".py"), script)
        report = _report(script)
        used: set[str] = set()
        for draw in range(draws if report is not None else 0):
            chosen = next(((title, text) for title, text in _texts(report, script, draw) if text not in used), None)
            if chosen is None:
                break
            title, text = chosen
            used.add(text)
            treated = script.with_name(f"treated_{script.name}")
            treated.write_text(text)
            value = statistics.mean(_value(treated, seed) for seed in range(seeds))
            row["draws"].append({"title": title, "value": value, "cured": value >= broken + COVERED * (healthy - broken)})
    return row


def _texts(report: ReportData, script: Path, seed: int) -> Any:
    """(title, edited script) of each treatment that can be applied, in the order drawn with `seed`."""
    text = read(str(script)).text
    for prescription, edits in blind(report, str(script), seed):
        try:
            yield prescription.title, applied(text, edits)
        except TreatmentRefused:
            continue


def _report(script: Path) -> ReportData | None:
    output = script.with_suffix(".report.json")
    _run("-m", "gradcheck_doctor", "run", "--fail-on", "never", "--format", "json", "--output", str(output), script.name, folder=script.parent)
    if not output.exists():
        return None
    data = json.loads(output.read_text())
    return from_json(data["reports"][0] if "reports" in data else data)


def _value(script: Path, seed: int) -> float:
    """What the script's RESULT line says, -1 when it crashed or said nothing."""
    lines = [line for line in _run(script.name, "--seed", str(seed), folder=script.parent).splitlines() if line.startswith("RESULT ")]
    value = json.loads(lines[-1].removeprefix("RESULT ")).get("value") if lines else None
    return float(value) if value is not None and math.isfinite(value) else -1.0


def _run(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


if __name__ == "__main__":
    main()
