"""Cures at the start: the initialisation that the activation needs, written as a careful colleague would."""
from __future__ import annotations

import ast
from collections.abc import Iterator

from gradcheck_doctor.errors import TreatmentRefused
from gradcheck_doctor.records.findings import Edit, Finding, LayerRow, Prescription
from gradcheck_doctor.records.sites import Span
from gradcheck_doctor.theory.schemes import DEFAULT
from gradcheck_doctor.treatments.context import Context
from gradcheck_doctor.treatments.draws import Draw, draws, is_own_layer
from gradcheck_doctor.treatments.gates import forget_gate_bias
from gradcheck_doctor.treatments.outputs import class_prior, target_bias, zero_output_bias
from gradcheck_doctor.treatments.places import insert
from gradcheck_doctor.treatments.tree import Tree

KINDS = {"linear": "Linear", "conv1d": "Conv1d", "conv2d": "Conv2d", "conv3d": "Conv3d"}
METHODS = ("normal_", "uniform_", "trunc_normal_", "fill_", "zero_")          # of a tensor: m.weight.data.normal_(0, 0.02)
CALLS = ("uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "eye_", "dirac_", "xavier_uniform_", "xavier_normal_",
         "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "sparse_")
SCHEMES = ("he normal", "he uniform", "lecun normal", "glorot normal", "glorot uniform", "orthogonal", "zero bias")


def _call(nn: str, scheme: str, weight: str, slope: float = 0.0) -> str:
    """The nn.init call of a scheme on an expression."""
    leaky = f', a={slope:g}, nonlinearity="leaky_relu"' if slope else ', nonlinearity="relu"'
    return {
        "he normal": f"{nn}init.kaiming_normal_({weight}{leaky})", "he uniform": f"{nn}init.kaiming_uniform_({weight}{leaky})",
        "lecun normal": f'{nn}init.kaiming_normal_({weight}, nonlinearity="linear")', "glorot normal": f"{nn}init.xavier_normal_({weight})",
        "glorot uniform": f"{nn}init.xavier_uniform_({weight})", "orthogonal": f"{nn}init.orthogonal_({weight})",
        "zero bias": f"{nn}init.zeros_({weight})"}[scheme]


def initialise(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Correct the user's own init call or draw where there is one; else a loop over the modules where the model is built."""
    scheme, slope = str(prescription.arguments["scheme"]), float(prescription.arguments.get("slope", 0.0) or 0.0)
    if scheme in SPECIAL:
        return SPECIAL[scheme](context, finding, prescription)
    if scheme not in SCHEMES:
        raise TreatmentRefused(f"{prescription.title}: write it where the layer is built")
    rows = [r for r in context.rows(prescription.modules) if r.location is not None]
    spans, chosen = list(_own_calls(context, finding, prescription, scheme)), False
    edits = []
    for span in spans:
        tree = context.tree(span.file)
        node = tree.call(span)
        chosen = chosen or _chosen(tree, node)
        if node.args and _is_init(tree, node):
            edits.append(tree.replace(node, _corrected(tree, node, scheme, slope)))
    if edits and not chosen:
        return list(dict.fromkeys(edits))
    if scheme == "orthogonal":
        return _orthogonal(context, finding, prescription)
    tree = _home(context, finding, rows)
    edits = [] if chosen else list(_own_methods(tree, scheme, slope))
    if edits:
        return edits
    plain, drawn = _split(context, tree, rows)
    if scheme != "zero bias":
        edits = [d.scaled(scheme, slope) for d in drawn]
    if plain or not edits:
        edits += _loop(context, tree, plain, scheme, slope, late=chosen or _set_elsewhere(rows))
    return edits


def _set_elsewhere(rows: list[LayerRow]) -> bool:
    """The weights are no longer what torch's layers start with, by no call of nn.init: a function of the script's sets them once the model is built."""
    return any(not str(row.weight.get("scheme", DEFAULT)).startswith(DEFAULT) and row.weight.get("init") is None for row in rows if row.op in KINDS)


def _home(context: Context, finding: Finding, rows: list[LayerRow]) -> Tree:
    place = rows[0].location if rows else finding.location
    return context.tree(place.file if place is not None else None)


def _is_init(tree: Tree, node: ast.Call) -> bool:
    """nn.init.normal_(...), init.normal_(...), what the file calls that module, or the bare name of one that was imported."""
    owner, _, name = tree.source(node.func).rpartition(".")
    return name in CALLS and (owner.rpartition(".")[2] == "init" or owner in ("", tree.imported.get("torch.nn.init")))


def _own_calls(context: Context, finding: Finding, prescription: Prescription, scheme: str) -> Iterator[Span]:
    """The user's nn.init calls on these layers' weights; for biases and single parameters, the call that the finding points to."""
    one = scheme == "zero bias" or scheme == "orthogonal"
    found = []
    for row in context.rows(prescription.modules) if not one else ():
        place = row.weight.get("init")
        if isinstance(place, dict):
            found.append(Span(place["file"], place["line"], place["column"], place["end_line"], place["end_column"]))
        elif isinstance(place, Span):
            found.append(place)
    for span in (finding.location, prescription.span):
        if span is not None and span.end_line is not None and _points_at_init(context, span):
            found.append(span)
    yield from dict.fromkeys(found)


def _points_at_init(context: Context, span: Span) -> bool:
    tree = context.tree(span.file)
    try:
        return _is_init(tree, tree.call(span))
    except TreatmentRefused:
        return False


def _corrected(tree: Tree, node: ast.Call, scheme: str, slope: float) -> str:
    """The init call as it should be; in a loop over all parameters a bias, which has no fan-in, gets zeros."""
    target = node.args[0]
    new = _call(tree.nn(), scheme, tree.source(target), slope)
    if not isinstance(target, ast.Name) or scheme == "zero bias" or not _any_parameter(tree, node, target.id):
        return new
    if not isinstance(tree.parents[node], ast.Expr):
        raise TreatmentRefused(f"{target.id} may be a bias, which has no fan-in; write there: {new} if {target.id}.dim() > 1")
    return f"{new} if {target.id}.dim() > 1 else {_call(tree.nn(), 'zero bias', target.id)}"


def _any_parameter(tree: Tree, node: ast.Call, name: str) -> bool:
    """`name` runs over parameters() and no test around the call asks for its shape or its name."""
    for around in tree.up(node):
        if isinstance(around, ast.If) and any(w in tree.source(around.test) for w in ("dim", "weight", "bias", "shape", "size", "len(")):
            return False
        if isinstance(around, ast.For) and any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(around.target)):
            return tree.source(around.iter).endswith("parameters()")
    return False


def _chosen(tree: Tree, node: ast.Call) -> bool:
    """The call is one of several that a setting chooses among: `if scheme == "zeros":`."""
    return any(isinstance(a, ast.If) and isinstance(a.test, ast.Compare) and isinstance(a.test.ops[0], (ast.Eq, ast.In))
               and any(isinstance(c, ast.Constant) and isinstance(c.value, str) for c in [a.test.left, *a.test.comparators])
               and not any(isinstance(c, ast.Constant) and str(c.value) in ("weight", "bias") for c in [a.test.left, *a.test.comparators])
               for a in tree.up(node))


def _own_methods(tree: Tree, scheme: str, slope: float) -> Iterator[Edit]:
    """m.weight.data.normal_(0, 0.02) becomes the right nn.init call."""
    role = "bias" if scheme == "zero bias" else "weight"
    for node in ast.walk(tree.root):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in METHODS:
            continue
        owner = node.func.value.value if isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "data" else node.func.value
        if isinstance(owner, ast.Attribute) and owner.attr == role and isinstance(tree.parents[node], ast.Expr) and _layers_only(tree, node):
            yield tree.replace(node, _call(tree.nn(), scheme, tree.source(owner), slope))


def _layers_only(tree: Tree, node: ast.Call) -> bool:
    """No test around the call asks for another kind of module, an embedding or a normalisation."""
    tests = [tree.source(a.test) for a in tree.up(node) if isinstance(a, ast.If)]
    return not any(word in test for test in tests for word in ("Norm", "Embedding", "LSTM", "GRU", "RNN"))


def _split(context: Context, tree: Tree, rows: list[LayerRow]) -> tuple[dict[ast.expr, str], list[Draw]]:
    """(constructors of torch's layers and layers derived from them with their kind, draws of weights that the script makes itself)."""
    plain: dict[ast.expr, str] = {}
    own = []
    for row in rows:
        if row.location is None or row.location.file != tree.file:
            continue
        try:
            node = tree.call(row.location)
        except TreatmentRefused:
            own.append(row)
            continue
        if row.op not in KINDS or is_own_layer(tree, node) is not None or not tree.source(node.func).rpartition(".")[2][:1].isupper():
            own.append(row)
        else:
            plain[node] = KINDS[row.op]
    return plain, draws(context, own)


def _loop(context: Context, tree: Tree, nodes: dict[ast.expr, str], scheme: str, slope: float, *, late: bool) -> list[Edit]:
    """One loop over all modules of these kinds."""
    nn = tree.nn()
    kinds = sorted(set(nodes.values()))
    if not kinds:
        raise TreatmentRefused(f"the weights are of no layer that has a standard initialisation; write {_call(nn, scheme, 'weight', slope)} where they are made")
    chosen = f"{nn}{kinds[0]}" if len(kinds) == 1 else "(" + ", ".join(nn + k for k in kinds) + ")"
    weight = [] if scheme == "zero bias" else [f"        {_call(nn, scheme, 'module.weight', slope)}"]

    def body(owner: str) -> list[str]:
        return [f"for module in {owner}.modules():", f"    if isinstance(module, {chosen}):", *weight,
                "        if module.bias is not None:", f"            {nn}init.zeros_(module.bias)"]
    return insert(context, tree, list(nodes), body, late=late or ".apply(" in tree.text)


def _orthogonal(context: Context, finding: Finding, prescription: Prescription) -> list[Edit]:
    """Recurrent weights: in torch's layers by name, a parameter or layer of the user's own behind its assignment, a raw tensor where it is drawn."""
    owner, _, name = str(prescription.arguments.get("parameter", "")).rpartition(".")
    place = next((s for s in (prescription.span, finding.location, *(r.location for r in context.rows(prescription.modules))) if s is not None), None)
    tree = context.tree(place.file if place is not None else None)
    nn = tree.nn()
    if name and not name.startswith("weight_hh"):
        return [_behind_assignment(context, tree, owner, name, prescription)]
    node = tree.call(place)
    return insert(context, tree, [node], lambda model: [
        f"for name, parameter in {model}.named_parameters():", '    if "weight_hh" in name:', f"        {_call(nn, 'orthogonal', 'parameter')}"],
        late=".apply(" in tree.text)


def _behind_assignment(context: Context, tree: Tree, owner: str, name: str, prescription: Prescription) -> Edit:
    """self.W = nn.Parameter(...) is followed by nn.init.orthogonal_(self.W)."""
    wanted = {f"self.{name}": f"self.{name}"}
    if name == "weight" and owner:
        last = owner.rpartition(".")[2]
        wanted[f"self.{last}"] = f"self.{last}.weight"
    made = [n for n in ast.walk(tree.root) if isinstance(n, ast.Assign) and len(n.targets) == 1 and tree.source(n.targets[0]) in wanted]
    if len(made) == 1:
        line = _call(tree.nn(), "orthogonal", wanted[tree.source(made[0].targets[0])])
        if line in tree.text:
            raise TreatmentRefused(f"{line} stands in the file already; something after it changes the weight")
        return tree.after(made[0], [line])
    rows = context.rows(prescription.modules)
    drawn = [d for d in draws(context, rows) if tree.source(tree.statement(d.call)).partition("=")[0].strip() == name] or _at(context, prescription)
    if len(drawn) == 1:
        return drawn[0].orthogonal()
    raise TreatmentRefused(f"it can't be told where {name} is made; behind that, write {_call(tree.nn(), 'orthogonal', f'self.{name}')}")


def _at(context: Context, prescription: Prescription) -> list[Draw]:
    """The draw of the one weight that is applied where the prescription points."""
    return draws(context, [LayerRow("", "matmul", 0, True, prescription.span)]) if prescription.span is not None else []


SPECIAL = {"forget gate bias": forget_gate_bias, "class prior": class_prior, "zero output bias": zero_output_bias}
PLANNERS = {"initialise": initialise, "target-bias": target_bias}
