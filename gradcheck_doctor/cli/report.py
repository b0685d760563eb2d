"""doctor report RECORD"""
from __future__ import annotations

import json

import click

from gradcheck_doctor.errors import ConfigError


@click.command("report")
@click.argument("record", type=click.Path())
@click.option("--format", "format_", type=click.Choice(["text", "html", "markdown", "concise", "sarif", "github", "gitlab", "junit", "rdjson", "json"]))
@click.option("--output", "-o", type=click.Path(dir_okay=False))
@click.option("--verbose", "-v", is_flag=True)
def command(record: str, format_: str | None, output: str | None, verbose: bool) -> int:
    """Render a report that was stored as JSON."""
    from gradcheck_doctor.cli.output import rule_infos, write
    from gradcheck_doctor.records.codec import from_json
    from gradcheck_doctor.report.render import Style, format_of, render

    try:
        with open(record, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {record}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{record} is no JSON: {error}") from error
    reports = [from_json(d) for d in data["reports"]] if isinstance(data, dict) and "reports" in data else [from_json(data)]
    chosen = format_ or (format_of(output) if output else None) or "text"
    write(render(reports, chosen, Style(rule_infos(), verbose=verbose)), output)
    return 0
