"""A report with one cause, one symptom, unicode, not-a-number and a fix."""
import math
from dataclasses import replace

from gradcheck_doctor.records.findings import Edit, Finding, Fix, Prescription, ReportData, Verified
from gradcheck_doctor.records.sites import BlindSpot, Span


def report():
    fix = Fix(Prescription("initialise", "He für ReLU", "safe", "init", ("a",), Span("m.py", 3, 5, 3, 9), {"scheme": "he normal"}),
              (Edit(Span("m.py", 3, 5, 3, 9), "x"),), Verified("improved", {"r": 1e-9}, {"r": 0.4}))
    first = Finding("GD102", "init-activation-mismatch", "error", "weights → too small", "a.b", ("a.b",), "linear", Span("m.py", 3, 5, 3, 9),
                    {"ratio": math.nan, "big": math.inf}, (fix,))
    second = Finding("GD301", "vanishing-gradient", "warning", "gone | away", "c")
    first = replace(first, related=(second.fingerprint,))
    return ReportData("m.py", "audit", {"class": "Net", "parameters": 5, "trainable_parameters": 5, "device": "cpu", "dtype": "float32"},
                      {"batch": "x", "seed": 0}, (first, second), (), {"loss": ((1.0, math.nan),)}, (BlindSpot("d", "never called"),), 0, "0.1.0")
