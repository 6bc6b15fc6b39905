"""What commands share: click classes, options, and text on the terminal. Imports click alone, so help is instant."""

from __future__ import annotations

import functools
import importlib
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from qrkt_hw.errors import UserError, folded, nearest, rank_and_count, spelled, unknown

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem
    from rich.console import Console

    from qrkt_hw.runs import RunFolder


class Command(click.Command):
    """A command that takes no option twice, and whose help ends with examples. One with many options shows the
    ``first`` of them, and all with ``--help-all``, in groups. Flags of ``old`` stand for today's."""

    def __init__(
        self, *args: Any, first: Iterable[str] = (), examples: str = "", old: dict[str, str] | None = None, **how: Any
    ) -> None:
        super().__init__(*args, **how)
        self.first, self.examples, self.old = list(first), examples.strip().splitlines(), old or {}
        for option in self.params:
            name = option.opts[0].removeprefix("--")
            option.opts += [SHORT[name]] if name in SHORT and len(option.opts) == 1 else []
            option.type = NAMED[name] if name in NAMED and option.type is click.STRING else option.type
        self.params.append(quiet_option())
        if self.first:
            eager: Any = {"is_flag": True, "is_eager": True, "expose_value": False, "callback": _help_all}
            self.params.append(click.Option(["--help-all"], help="Show all options and exit.", **eager))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click would take the last of several and drop the others in silence; a shell asks for completions
        ctx.token_normalize_func = lambda word: self.old.get(word, OLD_NAMES.get(word, word))
        shown = f"{ctx.command_path} --help{'-all' if self.first else ''} shows all"
        try:
            order = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(list(args))[2]
        except click.NoSuchOption as error:
            raise UserError(self._no_option(ctx, error.option_name, shown)) from error
        except click.BadOptionUsage as error:
            raise UserError(f"{error.message.rstrip('.')}; {shown}") from error
        for option in order:
            once = isinstance(option, click.Option) and not option.multiple and not option.count
            switch = isinstance(option, click.Option) and option.is_flag and not option.secondary_opts
            if once and not switch and order.count(option) > 1:
                raise UserError(f"{option.opts[0]}: given {order.count(option)} times; it is taken once only")
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            example = f", as in: {re.split('  +', self.examples[0].strip())[0]}" if self.examples else ""
            said = error.format_message().rstrip(".").replace(". Choose from:", "; choose from")
            raise UserError(said + example) from error
        except click.BadParameter as error:
            if error.param is None or (allowed := numbers(error.param.type)) is None:
                raise
            what = f"{error.param.opts[0]}: {error.message.partition(' is not ')[0]} is no {allowed}"
            raise UserError(f"{what}; give one, or leave it out") from error

    def _no_option(self, ctx: click.Context, name: str, shown: str) -> str:
        flags = [word for param in self.get_params(ctx) for word in (*param.opts, *param.secondary_opts)]
        near = nearest(name, [word for word in flags if word.startswith("--")])
        return f"no option {name!r}; " + (f"did you mean {' or '.join(near)}? {shown}" if near else shown)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {FIRST: [], "": []}
        params = self.get_params(ctx)
        params.sort(key=lambda param: self.first.index(param.opts[0]) if param.opts[0] in self.first else -1)
        for param in params:
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                title = getattr(param, "group", "")
                if {"--help", "--help-all", "--quiet"} & {*param.opts}:
                    title = "" if not self.first else "General"
                elif param.opts[0] in self.first:
                    title = FIRST
                groups.setdefault(title, []).append(record)
        if self.first:
            groups = {**groups, "General": groups.pop("General")}
        whole = not self.first or bool(ctx.meta.get(HELP_ALL))
        for title, records in groups.items():
            if records and (whole or title in (FIRST, "General")):
                with formatter.section(title or ("Options" if not self.first else "More")):
                    formatter.write_dl(records)
        if not whole:
            rest = sum(len(records) for title, records in groups.items() if title not in (FIRST, "General"))
            formatter.write_paragraph()
            formatter.write_text(f"{rest} more options: {ctx.command_path} --help-all")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")


FIRST = "Start with these"
# of commands and flags, as versions before spelled them
OLD_NAMES = {
    "twin": "baseline", "guard": "spacing", "quality": "min-fidelity", "judge": "reference-classifier",
    "yardsticks": "reference-scores",
}  # fmt: skip
HELP_ALL, QUIET = "qrkt_hw.help_all", "qrkt_hw.quiet"  # in click's meta


def _help_all(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[HELP_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


def _hush(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[QUIET] = True


def quiet_option() -> click.Option:
    return click.Option(
        ["--quiet", "-q"], is_flag=True, expose_value=False, callback=_hush,
        help="only results, warnings and errors: no progress, no notes",
    )  # fmt: skip


def quiet() -> bool:
    """Whether the current command was told to be quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


class Word(click.Choice):
    """One of several words, whatever the case, with hyphens or underscores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(spelled(str(value), map(str, self.choices)), param, ctx)


class Name(click.ParamType):
    """The name of something of which ``names`` lists some, whatever the case, with hyphens or underscores. Others are
    passed on as they are: files, and wrong ones, which are refused where they are looked up."""

    def __init__(self, what: str, names: Callable[[], Iterable[str]]) -> None:
        self.name, self.names = what, names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return spelled(str(value), self.names())

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self.names() if folded(name).startswith(folded(incomplete))]


class Number(click.FloatRange):
    """A finite number of a range: click lets NaN pass every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        return found if math.isfinite(found) else self.fail(f"{value} is not a finite number.", param, ctx)


def numbers(kind: click.ParamType) -> str | None:
    """Which numbers an option takes, such as "whole number from 1 to 64"; None where it takes no number."""
    if not isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        return None
    low, high, above, below = (getattr(kind, name, None) for name in ("min", "max", "min_open", "max_open"))
    what = "whole number" if isinstance(kind, click.types.IntParamType) else "number" if high else "finite number"
    most = "" if high is None else f"{' and below' if below else ' and at most'} {high}"
    return what if low is None else f"{what}{' above' if above else ' of at least'} {low}{most}"


class GroupedOption(click.Option):
    """An option of a group of the help."""

    def __init__(self, *args: Any, group: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        check_command(ctx, args, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # whole sentences, where click cuts them to a line
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in self.commands.items()])


def check_command(context: click.Context, words: list[str], names: Iterable[str]) -> None:
    """Refuse a command that there is not. Raises UserError: names the nearest."""
    word = context.token_normalize_func(words[0]) if context.token_normalize_func else words[0]
    if not context.resilient_parsing and not word.startswith("-") and word not in names:
        raise UserError(unknown("command", word, names, see=f"{context.command_path} --help"))


class LazyGroup(click.Group):
    """A group that imports each command when it is used.

    Args:
        commands: name -> one line of help; its module has its name.
        elsewhere: name -> another module.
    """

    def __init__(self, *args: Any, commands: dict[str, str], elsewhere: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known, self.elsewhere = commands, elsewhere

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.known)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        check_command(ctx, args, self.known)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.known:
            return None
        module = importlib.import_module(f"qrkt_hw.commands.{self.elsewhere.get(cmd_name, cmd_name)}")
        return getattr(module, cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.known.items()))


def _presets() -> list[str]:
    from qrkt_hw.experiments import presets

    return presets.names()


def _ansaetze() -> list[str]:
    from qrkt_hw import circuits

    return circuits.names()


def _backends() -> list[str]:
    from qrkt_hw.backends.entries import layers

    return list(layers())


def _datasets() -> list[str]:
    from qrkt_hw.runs.sections import SIDES

    return [name for name in SIDES if name != "folder"]


class BackendName(Name):
    """A backend's name, or several with commas; fake backends and IBM's devices are written in small letters."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        known = list(self.names())
        return ",".join(self._one(spelled(word, known), known) for word in str(value).split(","))

    @staticmethod
    def _one(name: str, known: list[str]) -> str:
        small = name.lower().replace("-", "_")
        return small if small.startswith(("fake_", "ibm_")) and name not in known else name


PRESET, ANSATZ, DATASET = Name("preset", _presets), Name("ansatz", _ansaetze), Name("dataset", _datasets)
BACKEND = BackendName("backend", _backends)
# short forms, the same in every command
NAMED = {"preset": PRESET, "dataset": DATASET, "backend": BACKEND, "noise-device": BACKEND,
         **dict.fromkeys(("ansatz", "attention-ansatz", "mlp-ansatz", "generator-ansatz", "discriminator-ansatz"),
                         ANSATZ)}  # fmt: skip
SHORT = {"preset": "-p", "dataset": "-d", "ansatz": "-a", "qubits": "-n", "layers": "-l", "epochs": "-e",
         "backend": "-b", "shots": "-s", "out": "-o"}  # fmt: skip
PATH = click.Path(path_type=Path)
preset_flag = click.option("--preset", help="start from a preset (qrkt-hw presets list)")
SEED = click.IntRange(0, 2**32 - 1)
run_argument = click.argument("run", required=False, type=PATH)
json_flag = click.option("--json", "as_json", is_flag=True, help="one JSON object or array on standard output")
data_dir_flag = click.option("--data-dir", type=PATH, help="folder of the data set  [default: the run's]")
config_flag = click.option("--config", type=PATH, help="YAML file of options, over the preset")
trust_flag = click.option(
    "--trust-ansatz",
    is_flag=True,
    help="import the Python file of the ansatz of an old run without kept circuits",
)
LIMIT = Number(min=0, min_open=True)
_DEVICE = (
    ("--resubmit", {"is_flag": True, "help": "with --resume: send jobs again that may or may not have arrived"}),
    ("--replan", {"is_flag": True, "help": "with --resume: transpile and pack the circuits anew"}),
    ("--max-qpu-seconds", {"type": LIMIT, "help": "limit of QPU time  [default: the backend's]"}),
    ("--max-cost", {"type": LIMIT, "help": "limit of the price in USD, pay-as-you-go"}),
)


def device_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a command with what it does about jobs and bills of a device: ``device`` is for ``backends.open``."""

    @functools.wraps(command)
    def bundled(
        *args: Any, resubmit: bool, replan: bool, max_qpu_seconds: float | None, max_cost: float | None, **rest: Any
    ) -> Any:
        from qrkt_hw.backends.budget import Budget

        device = {"resubmit": resubmit, "replan": replan, "budget": Budget(max_qpu_seconds, max_cost)}
        return command(*args, device=device, **rest)

    for name, how in reversed(_DEVICE):
        bundled = click.option(name, cls=GroupedOption, group="Jobs on a device", **how)(bundled)  # type: ignore[arg-type]
    return bundled


def opened(run: Path | None, trust: bool = False, err: bool = False) -> RunFolder:
    """The run folder of an argument, the newest run without one; says which on the first line."""
    from qrkt_hw.runs import RunFolder, newest

    folder = RunFolder.open(run if run is not None else newest(), trust)
    echo(f"run {folder.path}", err=err or quiet())
    return folder


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a sentence on the option whose file it is."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written: {error.strerror}") from error


# C0 without tab and newline, DEL, C1, the controls that turn the writing direction, and bytes that are no UTF-8
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with its control characters written out, as in ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def echo(text: str = "", err: bool = False) -> None:
    """Print a line whose control characters are written out."""
    if rank_and_count()[0] == 0 and not (err and quiet()):  # of several ranks the first one tells
        click.echo(printable(text), err=err)


def told(record: Any) -> None:
    """Print a record as JSON."""
    from qrkt_hw.runs.atomic import to_json

    echo(to_json(record))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[str] = (), **how: Any) -> None:
    """Print a table; columns in ``right`` are aligned there."""
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console(**{"markup": False, **how}).print(shown)


@contextmanager
def busy(console: Console, text: str) -> Iterator[None]:
    """Say on a terminal what goes on until it is over."""
    with console.status(text) if console.is_terminal and not console.quiet else nullcontext():
        yield


def columns() -> int:
    """Width of the terminal, as rich and click see it."""
    return shutil.get_terminal_size().columns


def console(**how: Any) -> Console:
    """A rich console that writes control characters out, wherever a text comes from."""
    from rich.console import Console
    from rich.segment import Segment

    class Terminal(Console):
        def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
            for segment in super().render(*args, **kwargs):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with status 1; main ends all commands alike

    hushed = rank_and_count()[0] > 0 or (quiet() and how.get("stderr", False))  # of several ranks the first one tells
    return Terminal(**how, quiet=hushed)


def said() -> list[str]:
    """What the line of the current command says: options by their first name, such as ``--image``; arguments in
    capitals, such as ``RUN``."""
    context = click.get_current_context()
    return [
        option.opts[0] if isinstance(option, click.Option) else str(option.name).upper()
        for option in context.command.params
        if context.get_parameter_source(str(option.name)) == ParameterSource.COMMANDLINE
    ]


# Start sooner: without torch's compiler, of which torch's optimizers and Fabric import three names that do nothing
# unless something is compiled, torchmetrics, of which Fabric asks the version, and scipy.special. Only the program does
# without them, never the library. -----------------------------------------------------------------------------------
PROGRAM = "program"  # in click's context: this process was started for one command and ends with it
COMPILER = "torch._dynamo"


class Uncompiled(ModuleType):
    """Stands for ``torch._dynamo`` where nothing is compiled; whoever asks for more of it gets the real one."""

    __path__: list[str] = []
    OptimizedModule = type("OptimizedModule", (), {})

    def disable(self, function: Any = None, *_: object, **__: object) -> Any:
        return function if function is not None else lambda given: given

    def graph_break(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(real_compiler(), name)


class Submodules(MetaPathFinder, Loader):
    """Imports the real ``torch._dynamo`` when one of its submodules is imported."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or not isinstance(sys.modules.get(COMPILER), Uncompiled):
            return None
        real_compiler()
        importlib.import_module(name)
        return spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass


def real_compiler() -> ModuleType:
    """``torch._dynamo`` itself, from now on for everybody."""
    if isinstance(sys.modules.get(COMPILER), Uncompiled):
        del sys.modules[COMPILER]
    return importlib.import_module(COMPILER)


def import_connector() -> None:
    """Import TorchConnector's package without ``scipy.special`` (0.15 s), which only ``EffectiveDimension`` needs."""
    special = "scipy.special"
    if special in sys.modules or "qiskit_machine_learning" in sys.modules:
        return
    later = sys.modules[special] = ModuleType(special)
    later.__dict__["logsumexp"] = lambda *given, **how: importlib.import_module(special).logsumexp(*given, **how)
    try:
        import qiskit_machine_learning.neural_networks  # noqa: F401
    finally:
        del sys.modules[special]


def import_fabric() -> None:
    """Import TorchConnector as above, and Lightning Fabric alone; nothing to do where they are imported already."""
    import_connector()
    if "lightning_fabric" in sys.modules:
        return
    import torch

    if COMPILER not in sys.modules:
        torch._dynamo = sys.modules[COMPILER] = Uncompiled(COMPILER)  # type: ignore[assignment]
        sys.meta_path.insert(0, Submodules())
    sys.modules.setdefault("torchmetrics", None)  # type: ignore[arg-type]
    try:
        import lightning_fabric  # noqa: F401
    finally:
        if sys.modules["torchmetrics"] is None:
            del sys.modules["torchmetrics"]
