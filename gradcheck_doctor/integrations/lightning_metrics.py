"""The few numbers that DoctorCallback logs: of the newest observed step, aggregated over the model."""
from __future__ import annotations

import math
from statistics import median
from typing import Any

HEALTH = {"sick": 0.0, "watch": 0.5, "healthy": 1.0}
RECENT = 8             # observed steps among which the newest update is looked for: late in a training not each compares the weights
LAYERS = frozenset({"layer", "recurrent", "attention", "embedding"})


class Metrics:
    """Numbers under `doctor/`. `learn` is told each judgement's report; `take` reads the newest observed step and costs microseconds.

    doctor/grad_norm        global L2 norm, unscaled, before clipping
    doctor/gradient_ratio   smallest gradient on the spine relative to that of the last layer on it
    doctor/worst_layer      where that is: the layer's place in the report's layer table (`order`)
    doctor/update_ratio     median over the parameters of rms(change) / rms(weight)
    doctor/dead_fraction    largest share of dead units of an activation, last window
    doctor/health           1 healthy, 0.5 watch, 0 sick, as of the last judgement
    doctor/findings         serious findings so far
    """

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor
        self._verdict: dict[str, float] = {}
        self._spine: list[tuple[int, Any]] = []
        self._logged = -1
        self._judged = False

    def learn(self, report: Any) -> None:
        """Verdict, findings and the spine, as they are now."""
        self._verdict = {"doctor/health": HEALTH[report.verdict], "doctor/findings": float(sum(f.severity != "info" for f in report.findings))}
        self._judged = True
        if report.recording is None:
            return
        from gradcheck_doctor.observe.build import place

        observer = self.monitor.observer
        prefixes = observer.roots.prefixes()
        nodes = {(place(observer, n, prefixes)[0], n.op, n.ordinal): n for n in observer.graph.nodes}
        found = [(o.index, nodes.get((o.module, o.op, o.ordinal))) for o in report.recording.spine if o.category in LAYERS]
        self._spine = [(index, node) for index, node in found if node is not None]

    def take(self) -> dict[str, float]:
        """What is new since the last call; {} when nothing is."""
        steps = self.monitor.steps.rows
        judged, self._judged = self._judged, False
        if not steps or steps[-1].step == self._logged:
            return dict(self._verdict) if judged else {}
        self._logged = steps[-1].step
        return {k: v for k, v in {**self._verdict, **self._norms(), **self._flow(), **self._dead()}.items() if math.isfinite(v)}

    def _norms(self) -> dict[str, float]:
        """Not under FSDP: this rank's part of a norm is not the norm (the report at the end has it)."""
        if self.monitor.observer.roots.data_sharded:
            return {}
        found = {}
        norm = self.monitor.steps.rows[-1].grad_norm
        if norm is not None:
            found["doctor/grad_norm"] = norm
        latest = (next((row.update_ratio for row in reversed(rows[-RECENT:]) if row.update_ratio is not None), None) for rows in self.monitor.parameter_steps.values())
        ratios = [ratio for ratio in latest if ratio is not None]
        if ratios:
            found["doctor/update_ratio"] = median(ratios)
        return found

    def _flow(self) -> dict[str, float]:
        known = [(order, step, node.gradient[step]) for order, node in self._spine if (step := max(node.gradient, default=None)) is not None]
        if len(known) < 2:
            return {}
        newest = max(step for _, step, _ in known)
        gradients = [(order, g) for order, step, g in known if step == newest and g.finite]
        if len(gradients) < 2 or not gradients[-1][1].norm:
            return {}
        last = gradients[-1][1]
        ratio, order = min((_ratio(g, last), order) for order, g in gradients)
        return {"doctor/gradient_ratio": ratio, "doctor/worst_layer": float(order)}

    def _dead(self) -> dict[str, float]:
        shares = [units.dead_fraction for n in self.monitor.observer.graph.nodes if n.activity is not None and (units := n.activity.result()[2]) is not None]
        return {"doctor/dead_fraction": max(shares)} if shares else {}


def _ratio(low: Any, high: Any) -> float:
    """Of the ratios per element and as a whole the one nearer to 1, as the rules take it."""
    candidates = [c for c in (low.rms / high.rms if high.rms else 0.0, low.norm / high.norm) if c > 0]
    return min(candidates, key=lambda c: abs(math.log(c))) if candidates else 0.0
