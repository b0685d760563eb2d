from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import ParameterRecord, Recording
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.rules.attention import PRODUCTS
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild, progress
from gradcheck_doctor.rules.recurrent.cures import EXPECTED, length, recurrent_operations

FORGETFUL = 0.8        # after ten steps a tenth is left
LOST = 0.4             # after four steps 3 % are left: less than torch's default, so somebody chose it
LONG = 10              # time steps
VANISHED = 1e-3        # of the gradient, from the last time step to the first


GATED = ("LSTM", "GRU", "LSTMCell", "GRUCell")
LIMIT = 1.5            # of a plain recurrence
BEARS = 2.0            # times the radius that a plain recurrence bears, in a cell with gates


class RecurrentInit(Rule):
    """The recurrent matrix of an RNN starts with a spectral radius far from 1.

    What it measures: the largest |eigenvalue| of W_hh as it was before training, in a plain (tanh or ReLU) recurrence. Of an LSTM or a GRU
    std(W_hh) sqrt(hidden size), which is the radius of independent elements; half of it is judged, for these bear more: the limit is 3.

    Why it matters: with a radius of 2.8 tanh saturates and the recurrence is chaotic; with PyTorch's default, 0.58, a signal is forgotten within
    five to ten steps. Orthogonal init has radius 1. Gates of N(0, 1) weights start saturated and pass no gradient.

    When it is harmless: short memories, a run that learns. A radius of 0.8 or less is info in a plain recurrence, over more than 10 time steps; one of
    0.4 or less, which no default has, is a warning in a run of up to 100 of them whose loss does not fall and whose gradient is seen to vanish through time.

    Sources: Saxe et al. 2014 (arXiv:1312.6120); Le et al. 2015 (arXiv:1504.00941); the circular law gives 0.58 for the default.
    """

    code = "GD406"
    name = "recurrent-init"
    summary = "recurrent matrix with a spectral radius far from 1"
    threshold = Threshold(LIMIT, LIMIT, "spectral radius", "tanh recurrences turn chaotic above 1; 1.5 leaves room", info=1.3)
    order = 305
    explains = ("GD302", "GD202", "GD305", "GD401", "GD707", "GD103", "GD102", "GD405")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        for record in recording.parameters:
            if record.trained:
                continue
            if record.spectral_radius is not None and _recurs(recording, record):
                yield self._judge(recording, record)
            elif record.role.startswith("weight_hh") and record.gain is not None and _type(recording, record) in GATED:
                yield self._gated(recording, record, record.gain)

    def _gated(self, recording: Recording, record: ParameterRecord, radius: float) -> Measurement:
        module = recording.module.get(record.module)
        return Measurement(value=radius / BEARS, module=record.module, op=_type(recording, record), cap=mild(recording),
                           location=record.origin or (module.built if module is not None else None),
                           evidence={"spectral_radius": radius, "parameter": record.name, "std": record.std, "gated": True})

    def _judge(self, recording: Recording, record: ParameterRecord) -> Measurement:
        module = recording.module.get(record.module)
        built = module.built if module is not None else None
        radius, longest = record.spectral_radius or 0.0, _longest(recording, record)
        forgets = radius <= FORGETFUL and longest > LONG
        lost = forgets and radius <= LOST and longest <= EXPECTED and recording.kind == "run" and progress(recording) is not None and _vanishes(recording, record)
        return Measurement(value=record.spectral_radius or 0.0, module=record.module, op=_type(recording, record),
                           location=record.origin or _applied(recording, record) or built, cap=mild(recording), floor="warning" if lost else "info" if forgets else None,
                           evidence={"spectral_radius": record.spectral_radius, "parameter": record.name, "std": record.std})

    def message(self, m: Measurement) -> str:
        if "gated" in m.evidence:
            return (f"{m.evidence['parameter']} starts with a spectral radius of about {m.evidence['spectral_radius']:.3g} (a cell with gates bears "
                    f"{BEARS * LIMIT:g}): its gates are saturated from the first step on; orthogonal initialisation has 1")
        if m.floor:
            return (f"{m.evidence['parameter']} starts with spectral radius {m.value:.2g}, so the state forgets {1 - m.value:.0%} at every step; "
                    "orthogonal initialisation has 1")
        return f"{m.evidence['parameter']} starts with spectral radius {m.value:.3g} (limit {{limit}}); orthogonal initialisation has 1"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        record = recording.parameter[m.evidence["parameter"]]
        return (Prescription("initialise", "Orthogonal initialisation of the recurrent weights", safety="safe", kind="init", modules=(m.module,),
                             span=_applied(recording, record) or m.location, arguments={"scheme": "orthogonal", "parameter": m.evidence["parameter"]}),)


def _type(recording: Recording, record: ParameterRecord) -> str:
    module = recording.module.get(record.module)
    return module.type if module is not None else ""


def _longest(recording: Recording, record: ParameterRecord) -> int:
    """Time steps over which the matrix is applied."""
    return max((length(recording, o) for o in recurrent_operations(recording) if record.name in o.parameters or o.module == record.module), default=0)


def _applied(recording: Recording, record: ParameterRecord) -> Span | None:
    """Where the script itself multiplies with the matrix."""
    return next((o.called for o in recording.operations if record.name in o.parameters and o.op in PRODUCTS), None)


def _vanishes(recording: Recording, record: ParameterRecord) -> bool:
    """The gradient was seen to shrink through the time steps of this matrix."""
    rows = [o.time_gradients for o in recurrent_operations(recording) if record.name in o.parameters or o.module == record.module]
    return any(r and r[-1] > 0 and r[0] < VANISHED * r[-1] for r in rows)


def _recurs(recording: Recording, record: ParameterRecord) -> bool:
    """The matrix carries the state from one time step to the next."""
    if record.role.startswith("weight_hh"):
        return True
    return any(record.name in o.parameters for o in recurrent_operations(recording) if o.category == "layer")
