from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import mild


class ForgetGateBias(Rule):
    """The forget gate of an LSTM starts (nearly) closed, so the cell forgets within a few steps.

    What it measures: mean of b_ih + b_hh over the forget-gate slice (PyTorch order: input, forget, cell, output) as it was before training.

    Why it matters: a sum of -1 lets 27 % through per step: after ten steps 2e-6 is left. A sum of +1 lets 73 % through.

    When it is harmless: PyTorch's default, about 0, trains mostly: info. Only a clearly negative sum is more.

    Sources: Gers et al. 2000; Jozefowicz et al. 2015.
    """

    code = "GD407"
    name = "forget-gate-bias"
    summary = "LSTM forget gate starts closed"
    threshold = Threshold(-0.5, None, "mean b_ih + b_hh of the forget gate", "sigmoid(-0.5) = 0.38 a step", "below", info=0.25)
    order = 305
    explains = ("GD301", "GD208", "GD707", "GD405", "GD104", "GD702")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        sums: dict[tuple[str, str], list[float]] = {}
        for record in recording.parameters:
            if record.gate_bias is not None and not record.trained:
                key = (record.module, record.role.partition("_l")[2])
                sums.setdefault(key, []).append(record.gate_bias)
        worst = min(sums, key=lambda k: sum(sums[k]), default=None)
        if worst is None:
            return
        module = recording.module.get(worst[0])
        yield Measurement(value=sum(sums[worst]), module=worst[0], op="lstm", location=module.built if module is not None else None,
                          cap=mild(recording), evidence={"forget_bias": sum(sums[worst])})

    def message(self, m: Measurement) -> str:
        return f"the forget gates start with a bias of {m.value:.2g} (b_ih + b_hh); 1 keeps the memory at the start"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        return (Prescription("initialise", "Forget-gate bias 1", safety="safe", kind="init", modules=(m.module,), span=m.location,
                             arguments={"scheme": "forget gate bias", "value": 1.0}),)
