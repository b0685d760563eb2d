from __future__ import annotations

import math
from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Recording
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.progress import mild
from gradcheck_doctor.rules.recurrent.cures import length

LONG = 20              # time steps over which a forget gate of sigmoid(1) = 0.73 leaves 2e-3


class ForgetGateBias(Rule):
    """The forget gate of an LSTM starts (nearly) closed, so the cell forgets within a few steps.

    What it measures: mean of b_ih + b_hh over the forget-gate slice (PyTorch order: input, forget, cell, output) as it was before training.

    Why it matters: a sum of -1 lets 27 % through per step: after ten steps 2e-6 is left. A sum of +1 lets 73 % through.

    When it is harmless: PyTorch's default, about 0, trains mostly: info. Only a clearly negative sum is more.

    The cure: a bias of 1; where sequences are long also log(length), with which 1 / e of the memory is left at the sequence's end.

    Sources: Gers et al. 2000; Jozefowicz et al. 2015; Tallec and Ollivier 2018 (arXiv:1804.11188) for log(length).
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
        cures = [("Forget-gate bias 1", 1.0)]
        steps = max((length(recording, o) for o in recording.operations if o.module == m.module and o.op.startswith("lstm")), default=0)
        if steps >= LONG:
            cures.append((f"Forget-gate bias log({steps}), so that the memory reaches over the {steps} steps of a sequence", round(math.log(steps), 1)))
        return tuple(Prescription("initialise", title, safety="safe", kind="init", modules=(m.module,), span=m.location,
                                  arguments={"scheme": "forget gate bias", "value": value}) for title, value in cures)
