"""doctor report RECORD"""
from __future__ import annotations

import click


@click.command("report")
@click.argument("record", type=click.Path())
@click.option("--format", "format_", type=click.Choice(["text", "html", "markdown", "concise", "sarif", "github", "gitlab", "junit", "rdjson", "json"]))
@click.option("--output", "-o", type=click.Path(dir_okay=False))
@click.option("--export", "export_", type=click.Path(dir_okay=False), metavar="FILE",
              help="Of a store: write its figures, a row for each step and layer or parameter, to this .csv or .parquet file.")
@click.option("--verbose", "-v", is_flag=True)
def command(record: str, format_: str | None, output: str | None, export_: str | None, verbose: bool) -> int:
    """Render a report that was stored as JSON, or judge and render a run kept with run --store."""
    from gradcheck_doctor.cli.output import rule_infos, write
    from gradcheck_doctor.cli.stored import stored_reports
    from gradcheck_doctor.config import load
    from gradcheck_doctor.errors import ConfigError
    from gradcheck_doctor.report.render import Style, format_of, render

    if output is not None and format_ is None and output.lower().endswith((".csv", ".parquet")):
        raise ConfigError(f"a report is no table, so it is not written to {output}; the figures of a store are: doctor report {record} --export {output}")
    if export_ is not None:
        from gradcheck_doctor.store.export import export

        click.echo(f"{export_}: {export(record, export_)} rows", err=True)
        if output is None and format_ is None:
            return 0
    reports = stored_reports(record, load()).reports
    chosen = format_ or (format_of(output) if output else None) or "text"
    write(render(reports, chosen, Style(rule_infos(), verbose=verbose)), output, chosen)
    return 0
