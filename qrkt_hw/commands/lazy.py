"""Click commands that take no option twice, and a group that imports each command when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from qrkt_hw.errors import UserError

EARLIER = {"twin": "baseline"}  # names of commands in earlier versions


class Command(click.Command):
    """A command that refuses an option given twice: click would take the last and drop the others in silence."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # a shell that asks for completions is to get some
        order = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[2]
        for option in order:
            once = isinstance(option, click.Option) and not option.multiple and not option.count
            switch = isinstance(option, click.Option) and option.is_flag and not option.secondary_opts
            if once and not switch and order.count(option) > 1:
                raise UserError(f"{option.opts[0]}: given {order.count(option)} times; it is taken once only")
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # whole sentences, where click cuts them to a line
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in self.commands.items()])


class LazyGroup(click.Group):
    """Args: commands: name -> (``module:attribute``, one line of help)."""

    def __init__(self, *args: Any, commands: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.known)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = EARLIER.get(cmd_name, cmd_name)
        if cmd_name not in self.known:
            return None
        module, _, attribute = self.known[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.known.items()])
