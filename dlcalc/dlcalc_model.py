"""dlcalc-model: what a model is made of."""

from __future__ import annotations

import sys

import click

from dlcalc.errors import DlcalcError

DEFAULT_SEQ_LEN = 4096


@click.command()
@click.argument("model", required=False)
@click.option(
    "--seq-len",
    type=click.IntRange(min=1),
    help=f"Tokens of a sequence, for FLOPs.  [default: {DEFAULT_SEQ_LEN}, or the model's longest if that is less]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--list", "list_models", is_flag=True, help="List the built-in models.")
def main(model: str | None, seq_len: int | None, as_json: bool, list_models: bool) -> None:
    """Count the parameters, FLOPs and bytes of MODEL.

    MODEL is a built-in name (see --list), a model YAML, or a Hugging Face config.json or the folder it is in. The total
    leaves out multi-token prediction, as published sizes do; bytes are of everything that is trained. Active parameters
    are those one token uses, embedding and LM head included.
    """
    if list_models == (model is not None):
        raise click.UsageError("give one MODEL, or --list")
    try:
        if model is None:
            print_models(as_json=as_json)
        else:
            print_model(model, seq_len, as_json=as_json)
    except DlcalcError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def print_model(name_or_path: str, seq_len: int | None, *, as_json: bool) -> None:
    """One model on stdout."""
    from dlcalc.report.model_report import model_tables, report_model
    from dlcalc.specs.model_registry import load_model

    model = load_model(name_or_path)
    report = report_model(model, seq_len=seq_len or min(DEFAULT_SEQ_LEN, model.max_seq))
    print_result(report.as_dict(), model_tables(report), as_json=as_json)


def print_models(*, as_json: bool) -> None:
    """All built-in models on stdout."""
    from dlcalc.report.model_report import model_list_table
    from dlcalc.specs.model_registry import load_model, model_names

    models = [load_model(name) for name in model_names()]
    print_result([model.model_dump() for model in models], (model_list_table(models),), as_json=as_json)


def print_result(plain: object, tables: tuple[object, ...], *, as_json: bool) -> None:
    """JSON, or tables as wide as they need where stdout is no terminal; rich leaves colours out under NO_COLOR."""
    from rich.console import Console

    from dlcalc.utils.jsontext import to_json

    if as_json:
        click.echo(to_json(plain))
        return
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(*tables, sep="\n")


if __name__ == "__main__":
    main()
