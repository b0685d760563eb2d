"""`python -m tests.benchmarks [--quick] [--only NAME]`: what observing costs here, as Markdown tables.

NAME is a model (mlp, cnn, gpt, lstm), an audited model (resnet50, gpt2), or one of steps, amortised, memory, start-up, audit.
"""
from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator

import torch

from tests.benchmarks import tables
from tests.benchmarks.models import AUDITED, WORKLOADS

SECTIONS = ("steps", "amortised", "memory", "start-up", "audit")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--only", action="append", default=[], choices=[*SECTIONS, *WORKLOADS, *AUDITED], metavar="NAME")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"Measured on {tables.facts()}\n")
    for heading, table in _tables(set(options.only), options.quick):
        print(f"{heading}: {table.title}\n")
        print("| " + " | ".join(table.header) + " |\n|" + "---|" * len(table.header))
        for row in table.rows:
            print("| " + " | ".join(row) + " |")
        print(flush=True)


def _tables(only: set[str], quick: bool) -> Iterator[tuple[str, tables.Table]]:
    sections = only & set(SECTIONS) or set(SECTIONS)
    models = only - set(SECTIONS)
    for name, workload in WORKLOADS.items():
        if not models or name in models:
            if "steps" in sections:
                yield "Steps", tables.steps(workload, quick)
            if "amortised" in sections:
                yield "Amortised", tables.amortised(workload, quick)
            if "memory" in sections:
                yield "Memory", tables.memory(workload)
    if "start-up" in sections and not models:
        yield "Start-up", tables.start_up(quick)
    for name, workload in AUDITED.items():
        if "audit" in sections and (not models or name in models):
            yield "Audit", tables.audit_cost(workload, quick)


if __name__ == "__main__":
    main()
