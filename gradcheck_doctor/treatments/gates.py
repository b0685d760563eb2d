"""The forget gate of an LSTM open at the start: bias 1 in its slice."""
from __future__ import annotations

import ast

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, Prescription
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.places import insert


def forget_gate_bias(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """A loop over the LSTMs; torch keeps two biases and orders each as input, forget, cell, output gate."""
    spans = [s for s in (*(r.location for r in context.rows(prescription.modules)), prescription.span, finding.location) if s is not None]
    if not spans:
        raise TreatmentRefused("it is not known where the LSTM was built; set bias_ih to 1 and bias_hh to 0 in the second quarter of each")
    tree = context.tree(spans[0].file)
    node = next((n for s in spans for n in ast.walk(tree.root) if isinstance(n, ast.Call) and tree.span(n) == s), None)
    if node is None:
        raise TreatmentRefused("the call could not be found in the source")
    kind = "LSTMCell" if tree.source(node.func).endswith("LSTMCell") else "LSTM"
    value = float(prescription.arguments.get("value", 1.0))

    def body(owner: str) -> list[str]:
        return [f"for module in {owner}.modules():", f"    if isinstance(module, {tree.nn()}{kind}):",
                "        for name, bias in module.named_parameters():", '            if "bias" in name:',
                "                size = bias.numel() // 4                      # gates: input, forget, cell, output",
                f'                {tree.nn()}init.constant_(bias[size:2 * size], {value:.1f} if "bias_ih" in name else 0.0)']
    return insert(context, tree, [node], body, late=".apply(" in tree.text)
