"""How a group of commands is made, the same way everywhere."""

import typer


def new_group() -> typer.Typer:
    """Return a group without completion, markup or decorated tracebacks."""
    return typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
