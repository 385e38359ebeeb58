"""dlcalc-model: what a model is made of."""

from __future__ import annotations

import click

from dlcalc import __version__
from dlcalc.doors import told_in_a_line

DEFAULT_SEQ_LEN = 4096

EPILOG = """
\b
Examples:
  dlcalc-model llama3-8b
  dlcalc-model deepseek-v3 --seq-len 8192 --json
  dlcalc-model path/to/config.json
  dlcalc-model --list

\b
Exit code: 0 it was counted; 2 the input is wrong.
"""


@click.command(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("model", metavar="MODEL", required=False)
@click.option(
    "--seq-len",
    metavar="N",
    type=click.IntRange(min=1, max=2**40),
    help=f"Tokens of a sequence, for FLOPs.  [default: {DEFAULT_SEQ_LEN}, or the model's longest if that is less]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
@click.option("--list", "list_models", is_flag=True, help="List the built-in models.")
@click.version_option(__version__, prog_name="dlcalc-model")
def main(model: str | None, seq_len: int | None, *, as_json: bool, list_models: bool) -> None:
    """Count the parameters, FLOPs and bytes of MODEL.

    MODEL is a built-in name (see --list), a model YAML, or a Hugging Face config.json or the folder it is in. The total
    leaves out multi-token prediction, as published sizes do; bytes are of everything that is trained. Active parameters
    are those one token uses, embedding and LM head included. FLOPs per token are of training, forward and backward.
    """
    if list_models == (model is not None):
        raise click.UsageError("give one MODEL, or --list")
    with told_in_a_line():
        if model is None:
            show_models(as_json=as_json)
        else:
            show_model(model, seq_len, as_json=as_json)


def show_model(name_or_path: str, seq_len: int | None, *, as_json: bool) -> None:
    """One model on stdout."""
    from dlcalc.report.model_report import model_tables, report_model
    from dlcalc.report.terminal import make_console
    from dlcalc.specs.model_registry import load_model
    from dlcalc.utils.jsontext import to_json

    model = load_model(name_or_path)
    report = report_model(model, seq_len=seq_len or min(DEFAULT_SEQ_LEN, model.max_seq))
    if as_json:
        click.echo(to_json(report.as_dict()))
    else:
        make_console().print(*model_tables(report), sep="\n")


def show_models(*, as_json: bool) -> None:
    """All built-in models on stdout."""
    from dlcalc.report.listings import print_models
    from dlcalc.report.terminal import make_console
    from dlcalc.utils.jsontext import to_json
    from dlcalc.workflows.listings import list_models

    rows = list_models()
    if as_json:
        click.echo(to_json(rows))
    else:
        print_models(rows, make_console())


if __name__ == "__main__":
    main()
