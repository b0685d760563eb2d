"""From what stands on the command line to targets: path.py, path.py:NAME, path.py:EXPR, package.module:EXPR, a folder."""
from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import BatchError, DoctorError, NotForAudit, TargetError
from gradcheck_doctor.observe.provenance import ConstructionLog, recording_construction
from gradcheck_doctor.records.sources import split_target
from gradcheck_doctor.targets import lightning_steps, losses, specs
from gradcheck_doctor.targets.infer import infer
from gradcheck_doctor.targets.memory import _guarded, default_optimizer, shapes
from gradcheck_doctor.targets.source import bare_argv, import_file, import_package, parse
from gradcheck_doctor.targets.target import Target

FACTORIES = ("build_model", "get_model", "create_model", "make_model")
BATCHES = ("example_inputs", "example_input_array", "get_batch", "sample_batch", "example_batch")
LOSSES = ("criterion", "loss_fn", "loss")
OPTIMIZERS = ("make_optimizer", "build_optimizer", "get_optimizer", "configure_optimizer")


Say = Callable[[str, bool], None]       # what was passed over and why, whether something is wrong with it


def _silent(text: str, broken: bool) -> None:
    """Nobody is told."""


class Options:
    """The options of `doctor audit` that build a target."""

    def __init__(self, *, batch: str | None = None, loss: str | None = None, optimizer: str | None = None, inputs: tuple[str, ...] = (),
                 device: str | None = None, seed: int = 0) -> None:
        self.batch, self.loss, self.optimizer, self.inputs, self.device, self.seed = batch, loss, optimizer, inputs, device, seed


def resolve(spec: str, options: Options | None = None, *, say: Say = _silent) -> list[Target]:
    """All targets that `spec` names, built under the seed with construction recorded; `say` is told which files of a folder were passed over, and why.

    Raises:
        TargetError, BatchError: with what was seen and the exact command to try.
    """
    options = options or Options()
    left, expression = split_target(spec)
    path = Path(left)
    if path.is_dir():
        return _folder(path, options, say)
    log = ConstructionLog()
    with recording_construction(log), bare_argv(left):
        torch.manual_seed(options.seed)                      # models and batches made while the file is imported
        if left.endswith(".py") or path.exists():
            module = import_file(path)
        elif re.fullmatch(r"[A-Za-z_][\w.]*", left) and (expression or not Path(left + ".py").exists()):
            if not expression and "." not in left and "/" not in left and not _importable(left):
                raise TargetError(f"{left} is no file and no module; write path/to/model.py or package.module:EXPR")
            module = import_package(left)
        else:
            raise TargetError(f"{left} does not exist" + (f"; did you mean {left}.py?" if Path(left + ".py").exists() else ""))
        models = _named(module, left, expression, options.seed) if expression else list(_found(module, left, options.seed))
    return [_target(name, model, module, options, log) for name, model in models]


def buildable(spec: str, options: Options | None = None, *, say: Say = _silent) -> list[Target]:
    """Targets of a file, none when it defines no model or its models can't be built; `say` is told why.

    A file that defines no model is not even imported: hooks pass every changed file.
    """
    left, expression = split_target(spec)
    try:
        if not expression and Path(left).is_file() and not _defines_models(parse(Path(left))):
            return []
        return resolve(spec, options, say=say)
    except (TargetError, BatchError) as error:
        say(passed_over(spec, error), not isinstance(error, NotForAudit))
        return []


def told(error: Exception) -> DoctorError:
    """What is said of a failure where the other files are audited all the same: also of one that is ours."""
    if isinstance(error, DoctorError):
        return error
    return TargetError(f"internal error: {type(error).__name__}: {(str(error).splitlines() or [''])[0]} (--verbose on this file alone shows the traceback)")


def passed_over(spec: str, error: Exception) -> str:
    first, *more = str(error).splitlines() or ["?"]
    hint = next((line for line in more if line.startswith(("Try: ", "Use: "))), "")
    return f"doctor: passed over {spec}: {first.removesuffix(' Classes seen:')}" + (f" {hint}" if hint else "")


def _importable(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _folder(folder: Path, options: Options, say: Say) -> list[Target]:
    """Every file below `folder` that defines models; files that can't be built are named, not fatal, unless all fail."""
    found: list[Target] = []
    problems: list[tuple[Path, DoctorError]] = []
    for path in sorted(folder.rglob("*.py")):
        if any(part.startswith(".") or part in ("site-packages", "node_modules", "__pycache__") for part in path.parts):
            continue
        try:
            if _defines_models(parse(path)):
                found.extend(resolve(str(path), options))
        except Exception as reason:
            problems.append((path, told(reason)))
    if not found:
        listed = "".join(f"\n  {(str(error).splitlines() or ['?'])[0]}" for _, error in problems)
        raise TargetError(f"no model below {folder} could be audited" + (listed or "; no file defines one"))
    for path, error in problems:
        say(passed_over(str(path), error), not isinstance(error, NotForAudit))
    return found


def _defines_models(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.ClassDef) and any(ast.unparse(b).endswith(("Module", "LightningModule")) for b in n.bases)
               or isinstance(n, ast.FunctionDef) and n.name in FACTORIES
               or isinstance(n, ast.Assign) and isinstance(n.value, ast.Call) and "nn.Sequential" in ast.unparse(n.value.func) for n in tree.body)


def _namespace(module: ModuleType) -> dict[str, Any]:
    import sys

    top = module.__name__.partition(".")[0]
    return {"torch": torch, "nn": nn, **({top: sys.modules[top]} if top in sys.modules else {}), **vars(module)}


def _lazy_names(module: ModuleType, expression: str) -> dict[str, Any]:
    """Names in the expression that the module makes only when asked for (a module-level `__getattr__`, as in transformers)."""
    if not hasattr(module, "__getattr__"):
        return {}
    try:
        used = {node.id for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Name)}
        return {name: value for name in sorted(used - vars(module).keys()) if (value := getattr(module, name, None)) is not None}
    except SyntaxError:
        return {}                                            # evaluating says so
    except Exception as error:
        raise TargetError(f"{module.__name__}:{expression}: {type(error).__name__}: {error}") from error


def _named(module: ModuleType, left: str, expression: str, seed: int) -> list[tuple[str, nn.Module]]:
    torch.manual_seed(seed)
    value = evaluate(expression, {**_lazy_names(module, expression), **_namespace(module)}, f"{left}:{expression}")
    if isinstance(value, type) or callable(value) and not isinstance(value, nn.Module):
        value = _built(value, expression, left)
    if not isinstance(value, nn.Module):
        raise TargetError(f"{left}:{expression} is {type(value).__name__}, not a torch.nn.Module")
    return [(f"{left}:{expression}", value)]


def evaluate(expression: str, namespace: dict[str, Any], what: str) -> Any:
    """Value of a Python expression of the user.

    Raises:
        TargetError: it does not parse or raises.
    """
    try:
        return eval(compile(expression, f"<{what}>", "eval"), namespace)
    except Exception as error:
        raise TargetError(f"{what}: {type(error).__name__}: {error}") from error


def _needed(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _built(maker: Callable[..., Any], name: str, left: str) -> Any:
    needed = _needed(maker)
    if needed:
        raise TargetError(f"{name} needs arguments: {', '.join(needed)}\nTry: doctor audit '{left}:{name}({', '.join(n + '=...' for n in needed)})'")
    try:
        return maker()
    except Exception as error:
        raise TargetError(f"building {name} raised {type(error).__name__}: {error}") from error


def _found(module: ModuleType, left: str, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Models of a bare path: instances, factories, then classes that need no arguments and are no part of another one."""
    own = vars(module)
    instances = {n: v for n, v in own.items() if isinstance(v, nn.Module) and any(True for _ in v.parameters()) and not n.startswith("_")}
    made: dict[str, nn.Module] = dict(instances)
    for name in FACTORIES:
        if callable(own.get(name)) and not _needed(own[name]):
            torch.manual_seed(seed)
            value = _built(own[name], f"{name}()", left)
            if isinstance(value, nn.Module):
                made[f"{name}()"] = value
    classes = {n: c for n, c in own.items() if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == module.__name__}
    used = {type(m) for model in made.values() for m in model.modules()}
    problems = _build_classes({n: c for n, c in classes.items() if c not in used}, made, left, seed)
    inner = {type(m) for model in made.values() for m in model.modules() if m is not model}
    kept = [(f"{left}:{n}", m) for n, m in made.items() if n in instances or n.endswith("()") and n[:-2] in FACTORIES or type(m) not in inner]
    parts = {id(m) for model in made.values() for m in model.modules() if m is not model}       # a loop's variable, an encoder
    kept = [(n, m) for n, m in kept if any(True for _ in m.parameters()) and id(m) not in parts]
    if not kept:
        raise (TargetError if problems else NotForAudit)(_none_found(left, classes, problems))
    yield from ((left if len(kept) == 1 else name, model) for name, model in kept)


def _build_classes(classes: dict[str, type[nn.Module]], made: dict[str, nn.Module], left: str, seed: int) -> list[str]:
    problems = []
    for name, cls in classes.items():
        if _needed(cls):
            continue
        torch.manual_seed(seed)
        try:
            made[f"{name}()"] = _built(cls, name, left)
        except TargetError as error:
            problems.append(str(error))
    return problems


def _none_found(left: str, classes: dict[str, type[nn.Module]], problems: list[str]) -> str:
    if not classes:
        return f"{left} defines no model: no nn.Module instance, no subclass, no function named {' or '.join(FACTORIES)}"
    lines = [f"  {name}({', '.join(_needed(c))})" for name, c in classes.items()]
    seen = f"no model in {left} can be built without arguments. Classes seen:\n" + "\n".join(lines) + "".join(f"\n  {p}" for p in problems)
    asking = {n: c for n, c in classes.items() if _needed(c)}
    if not asking:
        return seen
    name, cls = max(asking.items(), key=lambda pair: len(inspect.getsource(pair[1])) if _has_source(pair[1]) else 0)
    return f"{seen}\nTry: doctor audit '{left}:{name}({', '.join(f'{n}=...' for n in _needed(cls))})'"


def _has_source(cls: type) -> bool:
    try:
        inspect.getsource(cls)
    except (OSError, TypeError):
        return False
    return True


def _target(name: str, model: nn.Module, module: ModuleType, options: Options, log: ConstructionLog) -> Target:
    if options.device:
        try:
            model = model.to(options.device)
        except (AssertionError, RuntimeError) as error:
            raise TargetError(f"the model cannot be moved to --device {options.device}: {_first_line(error)}") from error
    if any(p.is_meta for p in model.parameters()):
        return Target(name, model, lambda m: torch.zeros(()), log=log, seed=options.seed)
    namespace = {**_namespace(module), "model": model}
    batch, described, synthetic = _batch(model, namespace, options)
    losses.checked(batch)
    batch = _to(batch, next((p.device for p in model.parameters()), torch.device("cpu")))
    torch.manual_seed(options.seed)
    compute, loss_described = _loss(model, namespace, batch, options, synthetic)
    factory, optimizer_described = _optimizer(model, namespace, options)
    return Target(name=name, model=model, compute_loss=_guarded(compute, batch), optimizer_factory=factory, log=log, seed=options.seed, synthetic=synthetic,
                  choices={"batch": f"{described}: {shapes(batch)}", "loss": loss_described, "optimizer": optimizer_described})


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_to(v, device) for v in value)
    return {k: _to(v, device) for k, v in value.items()} if type(value) is dict else value


def _batch(model: nn.Module, namespace: dict[str, Any], options: Options) -> tuple[Any, str, bool]:
    """(batch, where it is from, made up by us)."""
    if options.batch is not None and options.inputs:
        raise BatchError("--batch and --input both say what the model takes: give one of them")
    if options.batch is not None:
        value = evaluate(options.batch, namespace, f"--batch {options.batch}")
        return value, "--batch", False
    if options.inputs:
        return specs.batch_of(options.inputs, options.seed), "--input", True
    for owner, name in [(namespace, n) for n in BATCHES] + [(None, "example_input_array")]:
        value = getattr(model, name, None) if owner is None else owner.get(name)
        if value is not None and not isinstance(value, property):
            return (_drawn(value, f"{name}()") if callable(value) else value), name, False
    for name, value in namespace.items():
        if isinstance(value, torch.utils.data.DataLoader):
            return _drawn(functools.partial(_first, value), f"the first batch of {name}"), f"first batch of {name}", False
    return infer(model, options.seed), "inferred from the layers", True


def _drawn(make: Callable[[], Any], what: str) -> Any:
    try:
        return make()
    except StopIteration as error:
        raise BatchError(f"{what}: there is none, the loader is empty. Give --batch EXPR or --input SPEC") from error
    except Exception as error:
        raise BatchError(f"{what} raised {type(error).__name__}: {_first_line(error)}\nGive another batch: --batch EXPR or --input SPEC") from error


def _first(loader: torch.utils.data.DataLoader[Any]) -> Any:
    return next(iter(loader))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _loss(model: nn.Module, namespace: dict[str, Any], batch: Any, options: Options, synthetic: bool) -> tuple[Callable[[nn.Module], torch.Tensor], str]:
    function, described = None, ""
    if options.loss is not None:
        function, described = evaluate(options.loss, namespace, f"--loss {options.loss}"), f"--loss {options.loss}"
        if not callable(function):
            raise TargetError(f"--loss {options.loss} is {type(function).__name__}, not a function")
    elif lightning_steps.has_step(model) and not synthetic:
        compute = lightning_steps.compute(batch, losses.make_loss(batch, None, None, options.seed))
        return compute, "training_step"
    else:
        for name in LOSSES:
            if callable(namespace.get(name)):
                function, described = namespace[name], name
                break
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    needs_target = function is not None and _takes_target(function)
    if function is not None and needs_target and pair and not synthetic:
        return losses.make_loss(batch[0], batch[1], function, options.seed), described
    if function is not None and not needs_target:
        return losses.make_loss(batch, None, function, options.seed), described
    if function is not None and needs_target and options.loss is not None:
        raise BatchError("--loss takes targets, so the batch must be the pair (inputs, targets): give --batch '(inputs, targets)'")
    inputs = batch[0] if pair and function is not None and not synthetic else batch if options.inputs else _without_targets(model, batch)
    return losses.make_loss(inputs, None, None, options.seed), "the output's own .loss, else a random unit cotangent on the outputs"


def _without_targets(model: nn.Module, batch: Any) -> Any:
    """A dataloader's pair (x, y) for a forward that takes only x."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        try:
            taken = [p for p in inspect.signature(model.forward).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        except (TypeError, ValueError):
            return batch
        if len(taken) == 1:
            return batch[0]
    return batch


def _takes_target(function: Callable[..., Any]) -> bool:
    if isinstance(function, nn.Module):
        return len(_needed(function.forward)) >= 2
    return len(_needed(function)) >= 2


def _optimizer(model: nn.Module, namespace: dict[str, Any], options: Options) -> tuple[Callable[[nn.Module], Any], str]:
    """A function that makes the optimizer for any copy of the model, and where it is from."""
    if options.optimizer is not None:
        text = options.optimizer

        def evaluated(m: nn.Module) -> Any:
            value = evaluate(text, {**namespace, "model": m, "optim": torch.optim}, f"--optimizer {text}")
            if not isinstance(value, torch.optim.Optimizer):
                raise TargetError(f"--optimizer {text} is {type(value).__name__}, not a torch optimizer")
            return value
        evaluated(model)                                        # a mistake is said whether or not steps are taken
        return evaluated, f"--optimizer {text}"
    for name in OPTIMIZERS:
        if callable(namespace.get(name)):
            return _checked_factory(namespace[name], name), f"{name}(model)"
    if lightning_steps.has_step(model):
        return lightning_steps.optimizer, "configure_optimizers"
    return default_optimizer, "Adam, lr 1e-3 (default)"


def _checked_factory(factory: Callable[[nn.Module], Any], name: str) -> Callable[[nn.Module], Any]:
    """The file's own function; what it raises is said as its error, not ours."""
    def made(model: nn.Module) -> Any:
        try:
            return factory(model)
        except Exception as error:
            raise TargetError(f"{name}(model) raised {type(error).__name__}: {_first_line(error)}\nGive --optimizer EXPR instead") from error
    return made
