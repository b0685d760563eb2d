"""One rank of a distributed training in many scenarios; writes what it measured to a pickle. Run by test_distributed.py in two processes."""
import contextlib
import pickle
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradcheck_doctor as doctor

FEATURES, CLASSES, BATCH = 12, 3, 16


class Net(nn.Module):
    """Norm, in-place ReLU, dropout and a residual; `p=0` makes ranks and one process comparable."""

    def __init__(self, p=0.3, norm=True):
        super().__init__()
        self.first, self.norm, self.act = nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES) if norm else nn.Identity(), nn.ReLU(inplace=True)
        self.drop, self.last = nn.Dropout(p), nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.last(x + self.drop(self.act(self.norm(self.first(x)))))


class Deep(nn.Sequential):
    """Twenty sigmoid layers: the gradient vanishes."""

    def __init__(self):
        super().__init__(*[m for _ in range(20) for m in (nn.Linear(FEATURES, FEATURES), nn.Sigmoid())], nn.Linear(FEATURES, CLASSES))


class OneSided(nn.Module):
    """Unit 0 is dead on all ranks, unit 1 only where every input is negative."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, CLASSES)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0], [1.0], [1.0], [-1.0]]))
            self.fc.bias.copy_(torch.tensor([-1.0, 0.0, 9.0, 9.0]))

    def forward(self, x):
        return self.out(self.act(self.fc(x)))


class Attention(nn.Module):
    """Hands the weights of a layer inside it to one fused call."""

    def __init__(self):
        super().__init__()
        self.inside, self.last = nn.MultiheadAttention(FEATURES, 2, batch_first=True), nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        sequence = x.unsqueeze(1).expand(-1, 3, -1)
        return self.last(self.inside(sequence, sequence, sequence, need_weights=False)[0].mean(1))


def batches(steps, share=slice(None), features=FEATURES):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(BATCH, features, generator=generator), torch.randint(0, CLASSES, (BATCH,), generator=generator)
        yield x[share], y[share]


def seeded(make):
    torch.manual_seed(0)
    return make()


def mine():
    size = BATCH // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def sharded(model, mesh=None):
    options = {} if mesh is None else {"mesh": mesh}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, **options)
    return fully_shard(model, **options)


WRAPS = {"ddp": DistributedDataParallel, "unused": lambda m: DistributedDataParallel(m, find_unused_parameters=True), "fsdp": sharded}


def train(model, data, context=contextlib.nullcontext, *, clip=True, accumulate=False, lr=1e-2):
    optimizer = torch.optim.Adam(model.parameters(), lr)
    losses = []
    with context(model, optimizer) as seen:
        for x, y in data:
            optimizer.zero_grad()
            if accumulate:
                with model.no_sync():
                    F.cross_entropy(model(x), y).backward()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    return losses, [p.detach().clone() if not hasattr(p, "to_local") else p.to_local().detach().clone() for p in model.parameters()], seen


def nothing(model, optimizer):
    return contextlib.nullcontext()


def identity(wrap, **options):
    """(losses and weights are bit for bit the same watched and not, what stopped observing)."""
    plain = train(WRAPS[wrap](seeded(Net)), batches(14, mine()), nothing, **options)
    state = torch.get_rng_state()
    watched = train(WRAPS[wrap](seeded(Net)), batches(14, mine()), doctor.watch, **options)
    same = plain[0] == watched[0] and all(torch.equal(a, b) for a, b in zip(plain[1], watched[1], strict=True)) and torch.equal(state, torch.get_rng_state())
    return same, watched[2].report()


def fresh(wrap, make, steps=3, share=None, features=FEATURES, **watching):
    model = WRAPS[wrap](seeded(make))
    _, _, seen = train(model, batches(steps, mine() if share is None else share, features), lambda m, o: doctor.watch(m, o, **watching))
    return seen.report()


def one_sided():
    model = DistributedDataParallel(seeded(OneSided))
    sign = 1.0 if dist.get_rank() == 0 else -1.0
    data = [(sign * torch.rand(64, 1) - sign * 0.5 * dist.get_rank() * 0, torch.randint(0, CLASSES, (64,))) for _ in range(2)]
    return train(model, data, lambda m, o: doctor.watch(m, o), lr=1e-6)[2].report()


def only_rank_0():
    model = DistributedDataParallel(seeded(Net))
    _, _, seen = train(model, batches(4, mine()), doctor.watch if dist.get_rank() == 0 else nothing)
    start = time.monotonic()
    report = seen.report() if seen is not None else None
    return report, time.monotonic() - start


def other_schedules():
    return fresh("ddp", Net, 14, every=3 + 2 * dist.get_rank())


def in_the_middle():
    """report() while training goes on, by rank 0 alone and then by all."""
    model = sharded(seeded(Net))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reports = []
    with doctor.watch(model, optimizer) as seen:
        for step, (x, y) in enumerate(batches(6, mine())):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 2 and dist.get_rank() == 0 or step == 4:
                reports.append(seen.report())
    return [*reports, seen.report()]


def attention():
    return train(fully_shard(seeded(Attention)), batches(3, mine()), doctor.watch)[2].report()


def main(path):
    dist.init_process_group("gloo")
    results = {"identity": {name: identity(name) for name in WRAPS}, "accumulate": identity("ddp", accumulate=True),
               "norms": {wrap: fresh(wrap, lambda: Net(p=0.0, norm=False)) for wrap in WRAPS},
               "deep": {wrap: fresh(wrap, Deep, 8) for wrap in WRAPS}, "one sided": one_sided(), "only rank 0": only_rank_0(), "schedules": other_schedules(),
               "middle": in_the_middle(), "attention": attention()}
    kept = fresh("fsdp", Net)
    dist.destroy_process_group()
    results["destroyed"] = kept
    with open(path, "wb") as file:
        pickle.dump(results, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
