"""3dtrn: everything there is to say of one plan."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: python dlcalc/training_3d.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line
from dlcalc.specs.target import READABLE

if TYPE_CHECKING:
    from dlcalc.search.run import RunSource

EPILOG = """
\b
Examples:
  3dtrn examples/llama3_70b.yaml
  3dtrn results/llama3-70b-h100 --rank 1
  3dtrn run.yaml --what-if tp=4 --what-if dp=64
  3dtrn run.yaml --html report.html --trace step.json
  3dtrn run.yaml --json | jq .results.mfu
  3dtrn run.yaml --cite
  3dtrn run.yaml --better
  3dtrn --from megatron-lm args.txt --hardware h100 --devices 512

\b
Exit code: 0 the plan was estimated, also where it does not fit (the report says so); 2 the input is wrong.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.argument("run", metavar="RUN", type=click.Path())
@click.option(
    "--from", "source", metavar="TRAINER", type=click.Choice(READABLE), help="RUN is this trainer's own configuration."
)
@click.option("--hardware", metavar="NAME", help="With --from: the machine.")
@click.option(
    "--devices", metavar="N", type=click.IntRange(min=1), help="With --from: how many, where it does not say."
)
@click.option("--model", metavar="NAME|FILE", help="With --from: the model, in place of the one described.")
@click.option("--seq-len", metavar="N", type=click.IntRange(min=1), help="With --from: where it does not say.")
@click.option("--global-batch", metavar="N", type=click.IntRange(min=1), help="With --from: where it does not say.")
@click.option("--better/--no-better", default=None, help="Search for faster plans.  [default: with --from]")
@click.option("--rank", metavar="N", type=click.IntRange(min=1), help="Of a result: the N-th best plan.  [default: 1]")
@click.option("--scenario", metavar="NAME", help="Of a result: the scenario, by its name or a part of it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the report.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write a page with charts.")
@click.option("--trace", metavar="FILE", type=click.Path(path_type=Path), help="Also write a trace for Perfetto.")
@click.option("-v", "--verbose", is_flag=True, help="With --from: list every option that no estimate reads.")
@click.option("--cite", is_flag=True, help="Print the sources of the equations that this run used.")
@click.option(
    "--what-if",
    "what_if",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change something, such as tp=4 or data.gbs=2048, and print both and the difference; may be repeated.",
)
@click.option(
    "--hardware-dir",
    "hardware_dirs",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of further hardware files; may be repeated. Also DLCALC_HARDWARE_PATH.",
)
@click.version_option(__version__, prog_name="3dtrn")
def main(
    run: str,
    *,
    html: Path | None,
    trace: Path | None,
    as_json: bool,
    cite: bool,
    verbose: bool,
    what_if: tuple[str, ...],
    better: bool | None,
    **opened: Any,  # noqa: ANN401 - where the run comes from, passed on by name
) -> None:
    """Take one training run apart: memory, computation, communication, pipeline, step time and MFU.

    RUN is a run file (model, parallelism, data, hardware), or the result directory of a search, of which --rank picks a
    plan, or with --from what a trainer was called with: its arguments, its configuration file or the dump of it.
    """
    with told_in_a_line():
        from dlcalc.workflows.imports import open_any_run
        from dlcalc.workflows.run import write_trace

        source = open_any_run(run, **opened)
        wants_better = better if better is not None else opened["source"] is not None
        show(source, as_json=as_json, cite=cite, verbose=verbose, what_if=what_if, html=html, better=wants_better)
        if trace is not None:
            write_trace(source, trace)
            click.echo(f"trace in {trace}; open it in ui.perfetto.dev or chrome://tracing", err=True)


def show(
    source: RunSource,
    *,
    as_json: bool,
    cite: bool,
    verbose: bool,
    what_if: tuple[str, ...],
    html: Path | None,
    better: bool,
) -> None:
    """Print, and write the page."""
    from dlcalc.report.better import better_section
    from dlcalc.report.run_comparison import citation_section, comparison_section
    from dlcalc.report.run_report import sections
    from dlcalc.report.sections import print_sections
    from dlcalc.report.terminal import make_console
    from dlcalc.search.run_file import parse_change
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.better import better_plans
    from dlcalc.workflows.citations import citations
    from dlcalc.workflows.run import analyse, as_document, compare, drawable_timeline, write_text

    changes = dict(parse_change(text) for text in what_if)
    comparison = compare(source, changes) if changes else None
    facts = comparison.before if comparison else analyse(source)
    cited = citations(source) if cite else ()
    faster = better_plans(source) if better else None
    if as_json:
        document = as_document(facts, comparison, cited)
        click.echo(to_json({**document, "better": asdict(faster)} if faster else document))
    else:
        printed = (comparison_section(comparison),) if comparison else sections(facts, verbose=verbose)
        further = (*((better_section(faster),) if faster else ()), *((citation_section(cited),) if cited else ()))
        print_sections((*printed, *further), make_console())
    if html is not None:
        from dlcalc.report.run_html import page

        write_text(html, page(facts, comparison, cited, drawable_timeline(source)))
        click.echo(f"report in {html}", err=True)


if __name__ == "__main__":
    main()
