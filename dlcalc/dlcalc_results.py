"""dlcalc-results: verify, show, query and merge what searches wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line
from dlcalc.errors import ResultError

EPILOG = """
\b
Examples:
  dlcalc-results verify results/*
  dlcalc-results show results/llama3-70b-h100
  dlcalc-results query "SELECT tp, pp, min(step_time_s) FROM plans GROUP BY ALL ORDER BY 3 LIMIT 5" results/a
  dlcalc-results query "FROM scenarios" results/a results/b --csv scenarios.csv
  dlcalc-results merge results/a results/b -o results/both

\b
Exit code: 0 in order; 2 the input is wrong, or verify found a fault; 130 interrupted.
"""
SETTINGS = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}

Command = TypeVar("Command", bound=Callable[..., None])

file_path = click.Path(path_type=Path)
results_argument = click.argument("results", metavar="DIR...", nargs=-1, required=True, type=click.Path())
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def answering(command: Command) -> Command:
    """A command whose errors are one line and an exit code."""

    @wraps(command)
    def guarded(*args: Any, **options: Any) -> None:  # noqa: ANN401
        with told_in_a_line():
            command(*args, **options)

    return guarded  # type: ignore[return-value]


@click.group(epilog=EPILOG, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="dlcalc-results")
def main() -> None:
    """Work on results of dlcalc-search: finished ones, and what there is of interrupted ones."""


@main.command(context_settings=SETTINGS)
@results_argument
@json_option
@answering
def verify(results: tuple[str, ...], *, as_json: bool) -> None:
    """Compare every file with the manifest, and name what is damaged, missing or foreign.

    Reads every byte. Exit code 2 says that something is wrong.
    """
    from dlcalc.report.results_report import faults_text, verified_lines
    from dlcalc.report.sections import print_parts
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.results import as_document
    from dlcalc.workflows.results import verify as verified

    found = verified(results)
    if as_json:
        click.echo(to_json([as_document(one) for one in found]))
    else:
        print_parts([part for one in found for part in verified_lines(one)], make_console())
    if text := faults_text(found):
        raise ResultError(text)


@main.command(context_settings=SETTINGS)
@results_argument
@json_option
@answering
def show(results: tuple[str, ...], *, as_json: bool) -> None:
    """Say what a result holds: scenarios, inputs, rows, what was kept, version, and the best plan of each."""
    from dlcalc.report.results_report import study_section
    from dlcalc.report.sections import print_sections
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.results import as_document
    from dlcalc.workflows.results import show as held_by

    held = [held_by(directory) for directory in results]
    if as_json:
        click.echo(to_json([as_document(one) for one in held]))
    else:
        print_sections([study_section(one) for one in held], make_console())


@main.command(context_settings=SETTINGS)
@click.argument("sql", metavar="SQL")
@results_argument
@json_option
@click.option("--csv", "csv_file", metavar="FILE.csv", type=file_path, help="Write the rows as CSV.")
@click.option("--parquet", "parquet_file", metavar="FILE.parquet", type=file_path, help="Write them as Parquet.")
@answering
def query(
    sql: str, results: tuple[str, ...], *, as_json: bool, csv_file: Path | None, parquet_file: Path | None
) -> None:
    """Ask in SQL: `plans` has a row per plan of all results, with its study; `scenarios` a row per scenario.

    DuckDB answers. The statement sees these two and no file. FILEs get all rows; a terminal the first.
    """
    if as_json + (csv_file is not None) + (parquet_file is not None) > 1:
        raise click.UsageError("give one of --json, --csv and --parquet")
    for option, file, suffix in (("--csv", csv_file, ".csv"), ("--parquet", parquet_file, ".parquet")):
        if file is not None and file.suffix != suffix:
            raise click.UsageError(f"{option}: {file} should end in {suffix}")
    from dlcalc.report.results_report import answer_part
    from dlcalc.report.sections import print_parts
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.results import query as asked
    from dlcalc.workflows.results import query_to_file

    if (file := csv_file or parquet_file) is not None:
        n_rows = query_to_file(sql, results, file)
        click.echo(f"{n_rows:,} rows in {file}", err=True)
    elif as_json:
        answer = asked(sql, results, limit=None)
        click.echo(to_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows]))
    else:
        print_parts([answer_part(asked(sql, results))], make_console())


@main.command(context_settings=SETTINGS)
@results_argument
@click.option("-o", "--out", metavar="DIR", required=True, type=click.Path(), help="The result to write.")
@click.option("--overwrite", is_flag=True, help="Replace another result there.")
@json_option
@answering
def merge(results: tuple[str, ...], *, out: str, overwrite: bool, as_json: bool) -> None:
    """Make one result of several, which every command reads.

    A scenario that two results hold alike is taken once. Others of one name are told apart by their study.
    """
    from dlcalc.report.results_report import study_section
    from dlcalc.report.sections import print_sections
    from dlcalc.report.terminal import SearchProgress, make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.results import as_document
    from dlcalc.workflows.results import merge as merged

    with SearchProgress() as progress:
        held = merged(
            results, out, overwrite=overwrite, finished=lambda done, total: progress(done, total, "shards merged")
        )
    if as_json:
        click.echo(to_json(as_document(held)))
    else:
        print_sections([study_section(held)], make_console())


if __name__ == "__main__":
    main()
