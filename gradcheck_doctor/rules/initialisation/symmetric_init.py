from __future__ import annotations

from collections.abc import Iterator

from gradcheck_doctor.records.findings import Prescription
from gradcheck_doctor.records.recording import Operation, ParameterRecord, Recording
from gradcheck_doctor.records.ways import is_output
from gradcheck_doctor.rules.base import Measurement, Rule, Threshold, Unmeasured
from gradcheck_doctor.rules.flow import ahead, back, location, runs, weight
from gradcheck_doctor.rules.initialisation.cures import initialise
from gradcheck_doctor.rules.progress import mild

STEPS = 20             # after which rows that get different gradients are apart, under any optimizer
ELEMENTWISE = ("add", "sub", "rsub", "mul", "div")


class SymmetricInit(Rule):
    """All units of a hidden layer start with the same weights, so they stay the same for ever.

    What it measures: share of hidden weight matrices of a model whose rows are all equal (zeros and constants included). In a run also parameters that a
    class of the user's makes itself (means of a mixture, prototypes, queries), and output layers (the heads of a mixture): rows that started equal, that
    training moved, and that are still equal after 20 steps or more.

    Why it matters: equal units get equal gradients; the layer has the capacity of a single unit. All zeros with ReLU gives no gradient at all.

    A run that learns is warned all the same where the units are still equal at its end: it learned with the capacity that is left.

    When it is harmless: the last layer (a zero-initialised head, softmax regression), the last layer of a residual branch (zero-gamma, Fixup,
    LayerScale, LoRA's B), where the skip carries the signal. What a model makes itself from zeros is judged by what became of it (position embeddings,
    biases and gates get a gradient of their own for each row).

    Sources: Géron, ch. 11; TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code = "GD101"
    name = "symmetric-init"
    summary = "all units of a hidden layer start equal"
    threshold = Threshold(1.0, 1.0, "hidden layers with equal rows", "one such layer is enough")
    order = 290
    explains = ("GD301", "GD302", "GD303", "GD208", "GD201", "GD102", "GD103", "GD608", "GD307", "GD707", "GD702", "GD107", "GD211", "GD501", "GD604")

    def measure(self, recording: Recording) -> Iterator[Measurement | Unmeasured]:
        sick = [(o, w) for o in recording.operations if (w := _symmetric(recording, o)) is not None]
        if not sick:
            yield from self._as_one(recording)
            return
        first, record = sick[0]
        modules = tuple(dict.fromkeys(o.module for o, _ in sick))
        yield Measurement(value=float(len(modules)), module=first.module, modules=modules, op=first.op,
                          location=record.origin or location(recording, first), operations=tuple(o.index for o, _ in sick),
                          evidence={"layers": len(modules), "scheme": record.scheme}, cap=mild(recording, "warning"))

    def _as_one(self, recording: Recording) -> Iterator[Measurement]:
        """Rows of the user's own parameters that went through the training as one."""
        held = {p.name: o for p in recording.parameters if p.as_one and p.trainable and not p.trained and (o := _rows_of_their_own(recording, p)) is not None}
        if not held or recording.kind != "run" or recording.total_steps < STEPS:
            return
        first = recording.parameter[next(iter(held))]
        yield Measurement(value=1.0, module=first.module, op=held[first.name].op, location=first.origin or held[first.name].called,
                          operations=tuple(o.index for o in held.values()), cap=mild(recording, "warning"),
                          evidence={"rows": next(s for s in first.shape if s > 1), "names": tuple(_short(recording, n) for n in held),
                                    "steps": recording.total_steps, "scheme": first.scheme})

    def message(self, m: Measurement) -> str:
        if "rows" in m.evidence:
            names = m.evidence["names"]
            return (f"the {m.evidence['rows']} rows of {' and of '.join(names[:4])} start equal ({m.evidence['scheme']}) and are still equal after "
                    f"{m.evidence['steps']} steps: they compute the same and get the same gradient; draw {names[0]} at random")
        count = m.evidence["layers"]
        where = f"{count} hidden layers start" if count > 1 else f"hidden layer {m.module or '(root)'} starts"
        return f"{where} with equal rows ({m.evidence['scheme']}): every unit computes the same and gets the same gradient"

    def prescribe(self, m: Measurement, recording: Recording) -> tuple[Prescription, ...]:
        if "rows" in m.evidence:
            layers = [o for i in m.operations if (o := recording.operations[i]).op == "linear" and o.module_type == "Linear"]
            return initialise(recording, layers, ()) if layers else ()
        layers = [recording.operations[i] for i in m.operations]
        activations = [a for run in runs(recording) for a in run.activations]
        return initialise(recording, layers, activations)


def _short(recording: Recording, name: str) -> str:
    """self.means is `means` in its class; the weight of a library's layer needs the layer's name."""
    module = recording.module.get(recording.parameter[name].module)
    return name if module is not None and module.library else name.rpartition(".")[2]


def _symmetric(recording: Recording, operation: Operation) -> ParameterRecord | None:
    """The weight of a hidden layer whose rows are equal and where that is no design."""
    record = weight(recording, operation)
    if operation.category != "layer" or record is None or not record.rows_equal or record.trained or not record.trainable:
        return None
    if min(record.shape[:2]) < 2 or is_output(recording, operation):
        return None
    following, current = ahead(recording, operation), operation
    while following is not None and following.category in ("activation", "norm"):
        current, following = following, ahead(recording, following)
    if following is None and len(recording.consumers[current.index]) > 1:
        return None
    if following is not None and (following.category == "merge" or following.op in ("add", "mul")):
        return None
    return record if back(recording, operation) is not None else None


def _rows_of_their_own(recording: Recording, record: ParameterRecord) -> Operation | None:
    """The operation where the rows of a parameter of the user's make an axis of their own: each computes its value from the same signal.

    Where the other operand has that axis already (a position embedding on tokens), equal rows only say that the model takes the mean over it.
    """
    module = recording.module.get(record.module)
    users = [o for o in recording.operations if record.name in o.parameters]
    if not users or not any(row.grad_norm for row in recording.parameter_steps.get(record.name, ())):
        return None
    if module is not None and module.library:
        return users[0] if users[0].op == "linear" and len(users) == 1 and record.role == "weight" else None       # an output layer of several heads
    axis, rows = next((i - len(record.shape), size) for i, size in enumerate(record.shape) if size > 1)
    shared = any(sum(len(shape) >= -axis and shape[axis] == rows for shape in o.input_shapes) > 1 for o in users if o.op in ELEMENTWISE)
    return None if shared else users[0]
