"""doctor rule [CODE or name]"""
from __future__ import annotations

import json

import click


@click.command("rule")
@click.argument("rule", required=False)
@click.option("--format", "format_", type=click.Choice(["text", "json", "markdown"]), default="text")
def command(rule: str | None, format_: str) -> int:
    """List the rules, or explain one: what it measures, why, its threshold and source, when it is harmless, a sick and a cured example."""
    from gradcheck_doctor.rules.page import examples, markdown
    from gradcheck_doctor.rules.registry import find, rules

    chosen = [find(rule)] if rule else list(rules())
    if format_ == "json":
        rows = [{"code": r.code, "name": r.name, "summary": r.summary, "explanation": r.page(), "warning": r.threshold.warning, "error": r.threshold.error,
                 "info": r.threshold.info, "unit": r.threshold.unit, "direction": r.threshold.direction, "source": r.threshold.source,
                 "examples": examples(r)} for r in chosen]
        click.echo(json.dumps(rows[0] if rule else rows, indent=1))
    elif rule or format_ == "markdown":
        click.echo("\n\n".join(markdown(r, examples(r)) for r in chosen))
    else:
        lines = [("code", "name", "what it finds"), *((r.code, r.name, r.summary) for r in chosen)]
        code, name = (max(len(line[i]) for line in lines) for i in (0, 1))
        for line in lines:
            click.echo(f"{line[0]:<{code}}  {line[1]:<{name}}  {line[2]}")
    return 0
