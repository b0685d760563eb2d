"""A training under observation, for tests of what the rules say of it."""
import torch

import gradcheck_doctor as doctor


def fitted(model, batches, loss, rate=1e-3):
    """The report of a training with Adam on these (inputs, targets), one step each."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    with doctor.watch(model, optimizer) as seen:
        for x, y in batches:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return seen.report()
