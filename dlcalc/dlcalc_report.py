"""dlcalc-report: a study as one page, or its essentials on a terminal."""

from __future__ import annotations

from pathlib import Path

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

EPILOG = """
\b
Examples:
  dlcalc-report results/llama3-70b-h100 -o report.html
  dlcalc-report results/llama3-70b-h100 --rank 3 --scenario "on 256"
  dlcalc-report results/llama3-70b-h100
  dlcalc-report results/llama3-70b-h100 --json | jq .plan.mfu

\b
The page is one file that opens offline and prints.
Exit code: 0 written; 2 the input is wrong; 3 no plan fits (the page is written and says why); 130 interrupted.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("results", metavar="RESULTS", type=click.Path())
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="Page to write.")
@click.option(
    "--rank",
    metavar="N",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="The report is about the N-th best plan.",
)
@click.option("--scenario", metavar="NAME", help="By its name or a part of it.  [default: the first with a plan]")
@click.option("--no-sensitivity", is_flag=True, help="Leave out what 10 % more of the hardware would give.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.version_option(__version__, prog_name="dlcalc-report")
def main(
    results: str, *, out: Path | None, rank: int, scenario: str | None, no_sensitivity: bool, as_json: bool
) -> None:
    """Tell what a search found: the plan, why it wins, and what it rests on.

    RESULTS is the result directory of dlcalc-search. With -o a page with charts is written; without, the same
    essentials are printed.
    """
    with told_in_a_line():
        report(results, out=out, rank=rank, scenario=scenario, sensitivity=not no_sensitivity, as_json=as_json)


def report(
    results: str, *, out: Path | None, rank: int, scenario: str | None, sensitivity: bool, as_json: bool
) -> None:
    """Write the page, or print."""
    from dlcalc.report.sections import print_sections
    from dlcalc.report.study_report import sections
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.report import as_document, check_page, nothing_fits, study_report, write_page

    if out is not None:
        check_page(out)
    facts, timeline = study_report(results, rank=rank, scenario=scenario, sensitivity=sensitivity)
    if out is not None:
        write_page(out, facts, timeline)
        click.echo(f"report in {out}", err=True)
    if as_json:
        click.echo(to_json(as_document(facts)))
    elif out is None:
        print_sections(sections(facts), make_console())
    if error := nothing_fits(facts):
        raise error


if __name__ == "__main__":
    main()
