"""A training loop of your own with Accelerate, watched: one `with` line, nothing else to change.

    python accelerate_loop.py               # watched; the report at the end
    python accelerate_loop.py --no-doctor   # the same training, bit for bit
    accelerate launch accelerate_loop.py    # as usual; the first process reports
"""
from __future__ import annotations

import argparse
import contextlib

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import gradcheck_doctor as doctor


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-doctor", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = (torch.arange(16 * options.steps)[:, None] * 7 + torch.arange(12)) % 50
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(tokens, batch_size=8, shuffle=True))

    watch = None if options.no_doctor else doctor.watch(accelerator.unwrap_model(model), optimizer)
    with watch or contextlib.nullcontext():
        for number, batch in enumerate(loader):
            with accelerator.accumulate(model):
                loss = model(batch, labels=batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if number % 10 == 9:
                accelerator.print(f"batch {number + 1}: loss {loss.item():.9f}")
    if watch is not None and accelerator.is_main_process:
        print(watch.report())


if __name__ == "__main__":
    main()
