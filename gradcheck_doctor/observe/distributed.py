"""Training on several processes: what this rank contributes, handed over through the key-value store of the process group.

No collective is ever called: a collective must be called by all ranks in the same order as the training's own, so one rank that crashed, stopped early
or is not watched would hang the others. A rank puts its share in the store and goes on; rank 0 looks for the shares for a bounded time.
"""
from __future__ import annotations

import math
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradcheck_doctor.observe.build import place
from gradcheck_doctor.observe.parameters import recognised_again
from gradcheck_doctor.records.ranks import Extremes, OperationShare, ParameterShare, Share, UnitShare, merge
from gradcheck_doctor.records.recording import ParameterRecord, Recording
from gradcheck_doctor.records.sites import BlindSpot

if TYPE_CHECKING:
    from gradcheck_doctor.observe.watch import Monitor

PIECE = 2**20              # bytes a value; the store refuses values above 8 MiB
SUMMARIES = 40_000         # summaries in one share at most: later steps are thinned, on every rank alike
POLL_SECONDS = 0.02
TRIES = 50                 # windows in which another rank looks for rank 0's number
ATTACHED_WAIT = 1.0        # rank 0 in the middle of training: the others report at the same step or not at all
FINAL_WAIT = 30.0          # rank 0 after training


def launched_rank() -> int:
    """The rank this process was launched as (torchrun's environment), 0 when it was not."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return int(rank) if rank.isdigit() and world.isdigit() and int(world) > 1 else 0


def copies(tensor: Tensor, world: int) -> int:
    """How many ranks hold the same elements: all of them for a plain tensor, the replicas for a sharded one."""
    if not hasattr(tensor, "placements"):
        return world
    sizes = [tensor.device_mesh.size(i) for i, p in enumerate(tensor.placements) if p.is_replicate()]  # type: ignore[attr-defined]
    return math.prod(sizes)


class Ranks:
    """This process among the others. Inert until a process group of more than one rank exists.

    Args:
        channel: which watcher this is ("run", "watch", "lightning"); watchers of one channel are numbered by rank 0,
            those of one number belong together. None: never joins (an audit is a matter of one process).
    """

    def __init__(self, channel: str | None) -> None:
        self.channel = channel
        self.rank, self.world = 0, 1
        self.squares: dict[int, float] = {}
        self.clips: list[float | None] = []
        self.final_wait = FINAL_WAIT
        self._store: Any = None
        self._prefix, self._tries = "", 0
        self._edition = 0
        self._pieces: dict[int, int] = {}
        self._handed_in = False

    @property
    def joined(self) -> bool:
        return self._store is not None

    def join(self) -> bool:
        """Find the process group once there is one; whether this process is one of several. Keeps the store alive beyond the group."""
        if self.channel is None:
            return self.joined
        if self.joined:
            self._try(self._resolve)
            return True
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_world_size() < 2:
            return False
        try:
            from torch.distributed.distributed_c10d import _get_default_store

            self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
            self._store = _get_default_store()
            if self.rank == 0:
                self._resolve()
        except Exception:                                  # a backend without a store: this rank reports on itself
            self.channel, self._store, self.rank, self.world = None, None, 0, 1
        return self.joined

    def _resolve(self) -> None:
        """Agree on a number for this watcher: rank 0 counts up, another rank takes the newest number it has not used yet.

        Another rank does so after its first step, which it took together with rank 0: then rank 0 has counted, if it watches at all.
        """
        base = f"gradcheck_doctor/{self.channel}"
        if self._prefix or self._tries > TRIES:
            return
        self._tries += 1
        if self.rank == 0:
            number = self._store.add(f"{base}/numbers", 1)
            self._store.set(f"{base}/newest", str(number))
        else:
            number, used = (int(self._read(f"{base}/{key}") or 0) for key in ("newest", f"used_{self.rank}"))
            if number <= used:
                return
            self._store.set(f"{base}/used_{self.rank}", str(number))
        self._prefix = f"{base}/{number}"
        self._store.set(f"{self._prefix}/{self.rank}/here", "1")

    def reopen(self) -> None:
        """Watching goes on after a pause: what was handed in is no longer final."""
        if self._handed_in:
            self._handed_in = False
            self._try(lambda: self._stamp(0, -1, final=False))

    def _stamp(self, pieces: int, steps: int, final: bool) -> None:
        self._store.set(f"{self._prefix}/{self.rank}/stamp", f"{self._edition} {pieces} {steps} {int(final)}")

    def _try(self, act: Callable[[], None]) -> None:
        """Use the store; when it is gone (rank 0 or the agent ended) nobody is left to report to."""
        try:
            act()
        except Exception:
            self._handed_in = True

    # -- figures of this rank -----------------------------------------------------------------------------------------------------------
    def take(self, step: int, pairs: Iterable[tuple[Tensor, float | None]], scale: float) -> None:
        """Keep this step's part of the squared global gradient norm."""
        if (square := self.square(pairs, scale)) is not None:
            self.squares[step] = square

    def square(self, pairs: Iterable[tuple[Tensor, float | None]], scale: float) -> float | None:
        """This rank's part of the squared global gradient norm; None without any gradient."""
        parts = [(norm / scale) ** 2 / copies(p, self.world) for p, norm in pairs if norm is not None]
        return sum(parts) if parts else None

    # -- handing in and collecting --------------------------------------------------------------------------------------------------------
    def hand_in(self, share: Share, final: bool) -> None:
        """Put this rank's share where rank 0 finds it; never waits for anyone."""
        if not self.joined or self._handed_in:
            return
        self._try(self._resolve)
        if self._prefix:
            self._try(lambda: self._put(share, final))
            self._handed_in = final or self._handed_in

    def _put(self, share: Share, final: bool) -> None:
        data = zlib.compress(pickle.dumps(share, protocol=5), 1)
        pieces = [data[i: i + PIECE] for i in range(0, len(data), PIECE)]
        mine = f"{self._prefix}/{self.rank}"
        self._edition += 1
        for number, piece in enumerate(pieces):
            self._store.set(f"{mine}/{self._edition}/{number}", piece)
        self._stamp(len(pieces), share.steps, final)
        for number in range(self._pieces.pop(self._edition - 2, 0)):       # the edition before may be being read
            self._store.delete_key(f"{mine}/{self._edition - 2}/{number}")
        self._pieces[self._edition] = len(pieces)

    def collect(self, own: Share, final: bool) -> list[Share]:
        """Rank 0: own share and those of the ranks that watch, waiting for them a bounded time."""
        start = time.monotonic()
        deadline, show_up = start + (self.final_wait if final else ATTACHED_WAIT), start + ATTACHED_WAIT
        shares = [own]
        for rank in range(1, self.world):
            try:
                if (share := self._share_of(rank, own.steps, deadline, show_up)) is not None:
                    shares.append(share)
            except Exception:                              # unreadable or gone: reported as absent
                continue
        return shares

    def _share_of(self, rank: int, steps: int, deadline: float, show_up: float) -> Share | None:
        theirs = f"{self._prefix}/{rank}"
        while not self._store.check([f"{theirs}/here"]):
            if time.monotonic() > show_up:
                return None
            time.sleep(POLL_SECONDS)
        while True:
            stamp = self._read(f"{theirs}/stamp")
            edition, pieces, seen, last = (int(n) for n in stamp.decode().split()) if stamp else (0, 0, -1, 0)
            if seen >= steps or last or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        found = [self._read(f"{theirs}/{edition}/{number}") for number in range(pieces)]
        if not pieces or None in found:
            return None
        share = pickle.loads(zlib.decompress(b"".join(f for f in found if f is not None)))
        return share if isinstance(share, Share) else None

    def _read(self, key: str) -> bytes | None:
        """Value of a key, None when it is not there: `get` alone would wait."""
        return bytes(self._store.get(key)) if self._store.check([key]) else None

    def merged(self, recording: Recording, share: Callable[[], Share], final: bool) -> Recording:
        """On rank 0 the recording over all ranks; on another rank its own, after handing it in."""
        if not self.joined:
            return recording
        own = share()
        if self.rank:
            self.hand_in(own, final)
            alone = BlindSpot("", f"these are the figures of rank {self.rank} alone; rank 0 reports on all ranks")
            return replace(recording, blind_spots=(*recording.blind_spots, alone))
        shares = self.collect(own, final)
        result = merge(recording, shares, self.world)
        return replace(result, parameters=tuple(_recognised(p, shares) for p in result.parameters))


def _recognised(record: ParameterRecord, shares: list[Share]) -> ParameterRecord:
    """The initialisation of a sharded parameter, told from elements of all its shards."""
    values = [v for s in shares if (part := s.parameters.get(record.name)) is not None for v in part.values]
    return recognised_again(record, values) if values else record


def share_of(monitor: Monitor, recording: Recording) -> Share:
    """What this rank contributes, from its own recording."""
    ranks, observer, book = monitor.ranks, monitor.observer, monitor.book
    parameters = {record.name: tensor for tensor, record in book.records.values()}
    kept, prefixes = _kept_steps(recording), observer.roots.prefixes()
    activities = {(place(observer, n, prefixes)[0], n.op, n.ordinal): n.activity for n in observer.graph.nodes if n.activity is not None}
    operations = {}
    for o in recording.operations:
        key = (o.module, o.op, o.ordinal)
        activity = activities.get(key)
        if o.observed or activity is not None:
            operations[key] = OperationShare({s.step: (s.forward, s.gradient) for s in o.observed if s.step in kept}, _units(activity))
    shards = {}
    for record in recording.parameters:
        tensor = parameters.get(record.name)
        if tensor is not None and hasattr(tensor, "to_local"):
            rows = {row.step: row for row in recording.parameter_steps.get(record.name, ())}
            shards[record.name] = ParameterShare(record, tensor.to_local().numel(), copies(tensor, ranks.world), rows, book.shards.get(id(tensor), ()))
    stride = math.ceil(len(recording.curve) / 20_000) or 1
    return Share(
        rank=ranks.rank, steps=recording.total_steps, averaged=bool(shards) or observer.roots.data_parallel, operations=operations, parameters=shards,
        losses={step: value for step, value in recording.curve if step % stride == 0}, squares=dict(ranks.squares), clips=tuple(ranks.clips),
        loss_values=tuple(loss.value for loss in recording.losses), blind_spots=recording.blind_spots)


def _kept_steps(recording: Recording) -> set[int]:
    """Observed steps that go into the share: the first 16, then as many of the others as there is room for."""
    steps = sorted({s.step for o in recording.operations for s in o.observed})
    room = max(8, SUMMARIES // max(1, 2 * len(recording.operations)) - 16)
    rest = steps[16:]
    return {*steps[:16], *rest[:: max(1, math.ceil(len(rest) / room))]}


def _units(activity: Any) -> UnitShare | None:
    if activity is None:
        return None
    total, first, last = (None if e is None else _plain(e) for e in activity.extremes())
    return UnitShare(activity.bounds is not None, total, first, last)


def _plain(extremes: tuple[Tensor, Tensor, int]) -> Extremes:
    high, low, samples = extremes
    return tuple(high.tolist()), tuple(low.tolist()), samples
