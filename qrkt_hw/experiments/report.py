"""One HTML file on runs that loads nothing: what was trained, how well it does, what it costs, how to repeat it.

A part that a run cannot have is left out. One that it could have says why it is empty, and which command fills it.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from qrkt_hw import __version__
from qrkt_hw.data.text import texts_of
from qrkt_hw.errors import UserError, flag
from qrkt_hw.experiments import evaluation, presets
from qrkt_hw.experiments.baselines import default_out
from qrkt_hw.experiments.comparison import INCIDENTAL, Group, grouped, table
from qrkt_hw.experiments.inference import mistakes
from qrkt_hw.experiments.loading import read_split
from qrkt_hw.experiments.report_run import (
    About,
    Missing,
    ablations,
    chip,
    circuit,
    on_devices,
    plain,
    price,
    reading,
    spelled,
    unfinished,
)
from qrkt_hw.plots import charts
from qrkt_hw.plots.images import grid, picture, to_bytes
from qrkt_hw.plots.page import (
    chart,
    document,
    drawn,
    folded,
    matrix,
    most_frequent,
    paragraphs,
    percent,
    picture_of,
    png,
    prose,
    rows_of,
    seconds_of,
    unfilled,
)
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import KEYS, Config, flattened, unused
from qrkt_hw.runs.folder import read_json
from qrkt_hw.runs.sections import OWN

LARGEST = 3_000_000  # bytes of a page
SHOWN, TEXTS, LETTERS = 24, 12, 600  # mistakes that are shown: images, texts, and letters of a text
MOST_CLASSES = 20  # of a confusion matrix in numbers
GENERATED = 64
MEASURES = {"fid": 3, "kid": 5, "inception_score": 3, "precision": 3, "recall": 3}  # and their digits
KINDS = {"vit": "vision transformer", "text": "transformer for texts", "gan": "generative adversarial network"}


class Part(NamedTuple):
    """A part of the page; ``body`` is HTML."""

    key: str
    title: str
    body: str
    missing: str  # why it is empty; else ""


def summary(run: About) -> str:
    """What was trained, in a sentence; its figures; the options."""
    o, found, description = run.options, run.results, run.folder.description()
    logical = run.subject.description.logical
    names = [f"`{c.template}` on {c.qubits} qubits" for c in logical.circuits]
    with_circuits = f" whose circuits are {' and '.join(names)}" if names else " without circuits"
    if o.circuit.structured and not names:
        with_circuits = " of classical layers with the structure of circuits"
    count, done = run.subject.description.parameters, run.folder.epochs_done()
    epochs = f"{done} epochs" if done >= o.training.epochs else f"{done} of {o.training.epochs} epochs"
    long = f" for {epochs}" if done or found is None else ""  # a finished run may have lost its metrics.csv
    classes = "" if o.model.kind == "gan" else f" ({len(description['class_names'])} classes)"
    where = f", its circuits on the backend `{o.backend.name}`" if names else ""
    trained = f"trained on `{spelled(o.data.dataset)}`{classes}{long} with seed {o.training.seed}{where}"
    said = [f"A {KINDS[o.model.kind]}{with_circuits}, {trained}."]
    figures = list[tuple[str, str]]()
    if found is not None and found.test is not None:
        figures += [("test accuracy", percent(found.test.accuracy)), ("test AUROC", plain(found.test.auroc))]
        if found.best_epoch is not None:
            said.append(f"The weights of epoch {found.best_epoch:.0f} are kept: its validation AUROC is the best.")
    if found is None:
        said.append(f"The training is not finished: `qrkt-hw train --resume {run.word}` resumes it.")
    figures += [("parameters", f"{count.total:,}"), ("of them circuit angles", f"{count.quantum:,}")]
    figures += [("circuits a sample", f"{logical.calls_per_image:,}")] if names else []
    figures += [("epochs", str(done))] if long else []
    if found is not None and found.train_seconds is not None:
        figures.append(("training time", seconds_of(found.train_seconds)))
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
    defaults, header = Config(model=o.model.kind).flat(mode="json"), ("option", "value", "what it is")
    every = {key: (key, spelled(value), str(KEYS[key].field.description)) for key, value in o.flat(mode="json").items()}
    own = [row for key, row in every.items() if row[1] != spelled(defaults.get(key))]
    tables = {"Options that are not the defaults": own, "All options": every.values()}
    options = "".join(folded(title, rows_of(title, header, rows, text=True)) for title, rows in tables.items())
    return f'{paragraphs(*said)}<dl class="figures">{cells}</dl>\n{options}'


def curves(run: About) -> str:
    """Loss and scores over epochs, and those of the baselines."""
    if not run.history:
        return unfinished(run, run.folder.metrics, "finished epochs")
    last, made, best = run.history[-1], "", run.results.best_epoch if run.results is not None else None
    gan = run.options.model.kind == "gan"
    panels = {**charts.OF_GAN, "FID": {"fid": "measured in training"}} if gan else charts.OF_CLASSIFIER
    for name, lines in panels.items():
        known = {key: label for key, label in lines.items() if key in last}
        if known:
            ends = ", ".join(f"{label} {last_of(run.history, key)}" for key, label in known.items())
            alt = f"{name} over {len(run.history)} epochs; at the end {ends}"
            svg = chart(alt, charts.over_epochs, run.history, {name: known}, width=4.6, best=None if gan else best)
            made += drawn(alt, svg)
    body = f'<div class="charts">{made}</div>\n' + history_table(run)
    if not run.options.has_circuits:
        return body
    body += run.h("Beside classical baselines")
    out = default_out(run.folder)
    record = out / "baselines.json"
    if not record.is_file():
        return body + unfilled(f"None was trained: `qrkt-hw baseline {run.word}` does.")
    names, folders = list[str](), list[RunFolder]()
    with reading(record, "what qrkt-hw baseline writes"):
        for side, found in read_json(record)["sides"].items():
            kept = Path(found.get("chosen") or found["run"])
            moved = out.joinpath(side, *([kept.name] if kept.name.startswith("lr-") else []))
            place = next((path for path in (kept, moved) if path.is_dir()), None)
            if place is not None:
                names.append(side)
                folders.append(RunFolder(place))
    return body + beside(grouped(folders, names)) if folders else body


def last_of(history: Sequence[dict[str, float]], key: str) -> str:
    """The last value; some are measured every few epochs."""
    return next((f"{row[key]:.3f}" for row in reversed(history) if math.isfinite(row[key])), "undefined")


def history_table(run: About) -> str:
    header = list(run.history[0])
    rows = [[f"{row['epoch']:.0f}", *(f"{row[key]:.5g}" for key in header[1:])] for row in run.history]
    return folded("Every epoch in numbers", rows_of("Every epoch", header, rows))


def beside(groups: Sequence[Group]) -> str:
    """Groups of runs: curves and table."""
    pairs, made = [(group.label, group.histories) for group in groups], ""
    for quantity, name in charts.quantities_of(pairs).items():
        for over in ({"epoch": "epoch"}, {"seconds": "wall time (s)"}):
            alt = f"{name} over {next(iter(over.values()))}: {', '.join(group.label for group in groups)}"
            made += drawn(alt, chart(alt, charts.plot_beside, pairs, quantity, name, over, width=4.6))
    header, rows = table(groups)
    upright = [list(line) for line in zip(header[1:], *(row[1:] for row in rows), strict=True)]
    shown_rows = [line for line in upright if any(cell != "-" for cell in line[1:])]
    words = "Means of runs that differ in their seed alone; ± and bands are their standard deviation."
    header = ["figure", *(row[0] for row in rows)]
    return f'<div class="charts">{made}</div>\n{rows_of("In numbers", header, shown_rows)}{paragraphs(words)}'


def differences(groups: Sequence[Group]) -> str:
    """The options in which groups of runs differ."""
    options = [group.runs[0].options() for group in groups]
    flat = [own.flat(mode="json") for own in options]
    for own, values in zip(options, flat, strict=True):
        if not own.has_projections:  # what the circuits would be means nothing
            values.update(dict.fromkeys((key for key in values if KEYS[key].section == "circuit"), None))
    keys = dict.fromkeys(key for values in flat for key in values if key not in INCIDENTAL)
    differing = [key for key in keys if any(values.get(key) != flat[0].get(key) for values in flat)]
    found = [(key, *(spelled(values.get(key)) for values in flat)) for key in differing]
    header = ["option", *(group.label for group in groups)]
    return rows_of("Options in which they differ", header, found) if found else ""


def errors(run: About) -> str | None:
    """Confusion matrix of the test split, and the mistakes in which the model is most confident."""
    if run.options.model.kind == "gan":
        return None
    folder, text = run.folder, run.options.model.kind == "text"
    description = folder.description()
    if not folder.model.is_file():
        return unfinished(run, folder.model, "trained weights")
    if run.options.data.dataset == OWN or description.get("backbone"):
        return Missing("Its data or its backbone were given in Python, where `qrkt_hw.Run` evaluates it.")
    try:
        split, written = read_split(folder, "test", run.limit, run.data_dir), list[str]()
        if text:
            data = run.options.replace(data_dir=run.data_dir or run.options.data.data_dir).data
            written = texts_of(data, "test")
    except UserError as error:
        fill = f"`qrkt-hw report {run.word} --data-dir DIR` fills this part"
        why = f"The test split cannot be read: {run.told(error)}. {fill}."
        kept = folder.plots / "confusion.png"
        if not kept.is_file():
            return Missing(why)
        return png(kept.read_bytes(), "Counts of predicted against true test samples", "drawn", 600) + paragraphs(why)
    names = list(map(str, description["class_names"]))
    counts, wrong = mistakes(folder, split, TEXTS if text else SHOWN, run.console)
    total, right = int(counts.sum()), int(np.trace(counts))
    which = f"of the {total:,} test {'texts' if text else 'images'}"
    if run.limit is not None:
        which = f"of the first {total:,} test {'texts' if text else 'images'}"
    said = f"On the exact simulator {right:,} {which} are right: {percent(right / total)}."
    if run.limit is None and run.accuracy is not None:
        same = abs(right / total - run.accuracy) < 0.5 / total
        said += " That is the recorded accuracy." if same else f" The run recorded {percent(run.accuracy)}."
    body = paragraphs(said) + (matrix(counts, names) if len(names) <= MOST_CLASSES else picture_of(counts))
    if not wrong:
        return body + paragraphs("No sample is wrong.")
    body += most_frequent(counts, names) + run.h(f"The {len(wrong)} mistakes in which the model is most confident")
    for one in wrong if text else ():
        words = re.sub(r"<br\s*/?>", " ", written[one.place])
        more = "…" if len(words) > LETTERS else ""
        said = f"<strong>{prose(names[one.true])}</strong>, predicted {prose(names[one.predicted])}"
        body += f"<blockquote><p>{said} with confidence {one.confidence:.3f}</p>"
        body += f"<p>{escape(words[:LETTERS])}{more}</p></blockquote>\n"
    if text:
        return body
    tiles = ""
    pixels = to_bytes(as_pixels(torch.stack([m.inputs for m in wrong]), description))
    for m, image in zip(wrong, pixels, strict=True):
        what = f"{names[m.true]}, predicted {names[m.predicted]}"
        tiles += f"<li><figure>{png(picture(image), f'Test image {m.place}: {what}')}<figcaption>"
        tiles += f"{prose(what)} ({m.confidence:.2f})</figcaption></figure></li>\n"
    return body + f'<ul class="tiles">{tiles}</ul>\n'


def as_pixels(inputs: torch.Tensor, description: dict[str, Any]) -> torch.Tensor:
    """Images ``(count, channels, size, size)`` in [-1, 1] of what the model reads."""
    mean, std = (torch.tensor(description[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (inputs * std + mean) * 2 - 1


def samples(run: About) -> str | None:
    """Images of a GAN, unselected, and their measures."""
    if run.options.model.kind != "gan":
        return None
    if not run.folder.model.is_file():
        return unfinished(run, run.folder.model, "trained weights")
    model = evaluation.gan_of(run.folder)
    points = evaluation.noise(GENERATED, model.latent, 0)
    images = evaluation.draw(model, points, evaluation.classes_of(model, GENERATED))
    alt = f"{GENERATED} generated images, unselected: the first of noise seed 0"
    body = drawn(alt, png(grid(images, 8), alt, "", 640))
    files = sorted((run.folder.path / "evaluation").glob("*.json"))
    if not files:
        how = f"`qrkt-hw evaluate {run.word}` gives FID, KID, precision and recall."
        return body + unfilled(f"Nothing was measured: {how}")
    newest = {}
    for file in files:
        with reading(file, "what qrkt-hw evaluate writes"):
            record = read_json(file)
            newest[record["protocol_digest"]] = (file, record)
    header = ("images", "FID", "KID", "Inception Score", "precision", "recall")
    for file, record in newest.values():
        with reading(file, "what qrkt-hw evaluate writes"):
            p = record["protocol"]
            found = {"this run": record["metrics"], **record.get("reference_scores", {})}
            figures = ((name, *(f"{one[k]:.{n}f}" for k, n in MEASURES.items())) for name, one in found.items())
            title = f"{p['samples']:,} images against {p['real_images']:,} of {p['split']}"
            body += rows_of(f"{title}; protocol {record['protocol_digest']}", header, figures)
    return body


def repeat(run: About) -> str:
    """The command that trains the run again, and where its figures were measured."""
    command = repeating(run)
    given = "No command line repeats it: its data or first weights come from Python, or from a run that is not here."
    body = f"<pre><code>{escape(command)}</code></pre>\n" if command else unfilled(given)
    found = run.results
    if found is not None and found.schedule_changed_after:
        body += paragraphs("It was made longer by --resume: its learning rates differ from those of this command.")
    if not run.folder.environment.is_file():
        return body + paragraphs("The run does not say where it was measured (no environment.json).")
    rows, kept = list[tuple[str, str]](), read_json(run.folder.environment)
    with reading(run.folder.environment, "what qrkt-hw train writes"):
        packages = dict(kept.pop("packages", None) or {})
        for key, value in {**kept, **packages}.items():
            rows.append((key, ", ".join(value) or "none" if isinstance(value, list) else spelled(value)))
    for key, unit in {"train_seconds": " s", "cpu_seconds": " s", "peak_memory_mb": " MB"}.items():
        if (value := getattr(found, key, None)) is not None:
            rows.append((key, f"{value:,.1f}{unit}"))
    rows += [(key, value) for key in ("weights_sha256", "data_sha256") if (value := getattr(found, key, None))]
    title = "Environment of the training, and hashes"
    return body + folded(title, rows_of(title, ("what", "found"), rows, text=True))


def repeating(run: About) -> str:
    """The shortest ``qrkt-hw train`` with the options of a run; empty where there is none."""
    o, source = run.options, run.origin.get("from")
    flat = {key: value for key, value in o.flat(mode="json").items() if key not in INCIDENTAL}
    if o.data.dataset == OWN or run.folder.description().get("as_given"):
        return ""
    bases = [("", Config(model=o.model.kind).flat(mode="json"))]
    named = [kept] if (kept := run.origin.get("preset")) in presets.names() else presets.names()
    if source is not None:
        try:
            theirs = RunFolder.open(Path(source["run"])).options().flat(mode="json")
            bases = [(f"--from {shlex.quote(spelled(source['run']))}", theirs)]
        except (UserError, KeyError, TypeError):
            return ""
    else:
        bases += [(f"--preset {name}", _options_of(name)) for name in named]
    found = []
    for begun, before in bases:
        if before["model"] != o.model.kind:
            continue
        changed = {key: value for key, value in flat.items() if value != before.get(key) and not unused(o, [key])}
        if not begun and o.model.kind != "vit":
            changed = {"model": o.model.kind, **changed}
        if all(value is not None for value in changed.values()):  # no flag takes a value away
            words = [_flag(key, value) for key, value in changed.items()]
            found.append(" ".join(filter(None, ["qrkt-hw train", begun, *words, f"--seed {o.training.seed}"])))
    return min(found, key=len, default="")


@cache
def _options_of(preset: str) -> dict[str, Any]:
    return Config(**flattened(presets.load(preset))).flat(mode="json")


def _flag(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(key) if value else f"--no-{flag(key)[2:]}"
    return f"{flag(key)} {shlex.quote(spelled(value))}"


# The page -----------------------------------------------------------------------------------------------------------
PARTS = {
    "trained": ("What was trained", summary),
    "curves": ("Curves", curves),
    "mistakes": ("Confusion and mistakes", errors),
    "images": ("Generated images", samples),
    "ablations": ("What it owes to its circuits", ablations),
    "circuit": ("Circuits and light cones", circuit),
    "chip": ("Layout on the chip", chip),
    "price": ("Price", price),
    "devices": ("Device runs and bill", on_devices),
    "repeat": ("How to repeat it", repeat),
}  # fmt: skip
SLOW = ("mistakes", "images", "circuit", "chip", "price")
OF_CIRCUITS = ("circuit", "chip", "price")  # the same for runs that differ in their seed alone


def parts_of(runs: Sequence[About]) -> list[list[Part]]:
    """The parts of each run, without those that it cannot have; what takes long is made last, as a file of any run may
    be damaged."""
    found = [dict[str, Part]() for _ in runs]
    for key in sorted(PARTS, key=SLOW.__contains__):
        title, make = PARTS[key]
        for run, own in zip(runs, found, strict=True):
            if key in OF_CIRCUITS and not run.subject.description.logical.circuits:
                continue
            alike = run.like and key in OF_CIRCUITS
            body = Missing(f"The same as of {run.like}: they differ in the seed alone.") if alike else make(run)
            if body is not None:
                missing = str(body) if isinstance(body, Missing) else ""
                own[key] = Part(f"{run.key}{key}", title, unfilled(missing) if missing else body, missing)
    return [[own[key] for key in PARTS if key in own] for own in found]


def page(
    runs: Sequence[RunFolder], console: Console, *, data_dir: Path | None = None, backends: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[str, list[dict[str, Any]]]:  # fmt: skip
    """The page of one or several runs, and its parts: ``run, part, title, missing``.

    Args:
        runs, console: the runs, and where progress is shown.
        data_dir: folder of the data set; None takes each run's.
        backends: devices on which circuits are placed and priced; none takes those that a run knows.
        limit: only the first test samples.

    Raises UserError: a damaged run, runs that cannot be compared, or a page beyond :data:`LARGEST`.
    """
    one = len(runs) == 1
    abouts = [About(run, console, data_dir, backends, limit, 2 + (not one), "" if one else f"run-{k}-")
              for k, run in enumerate(runs, 1)]  # fmt: skip
    main = nav = ""
    listed = list[dict[str, Any]]()
    if not one:
        groups = grouped(runs)
        for group in groups:
            first, *others = [about for about in abouts if about.folder in group.runs]
            group.label = f"{first.name} and {len(others)} more" if others else first.name
            for about in others:  # own circuits of one name may differ
                about.like = first.name if about.subject.description == first.subject.description else ""
        main = _section(Part("comparison", "Comparison", beside(groups) + differences(groups), ""), 2)
        nav = '<li><a href="#comparison">Comparison</a></li>\n'
        listed.append({"run": None, "part": "comparison", "title": "Comparison", "missing": None})
    for about, parts in zip(abouts, parts_of(abouts), strict=True):
        links = "".join(f'<li><a href="#{part.key}">{part.title}</a></li>\n' for part in parts)
        body = "".join(_section(part, about.level) for part in parts)
        if one:
            main, nav = body, links
        else:
            main += f'<div class="run"><h2 id="{about.key}run">{escape(about.name)}</h2>\n{body}</div>\n'
            nav += f'<li><a href="#{about.key}run">{escape(about.name)}</a><ul>{links}</ul></li>\n'
        for part in parts:
            shown = {"part": part.key.removeprefix(about.key), "title": part.title, "missing": part.missing or None}
            listed.append({"run": str(about.folder.path), **shown})
    title = abouts[0].name if one else f"{len(runs)} runs compared"
    names = " ".join(about.word for about in abouts)
    whole = document(
        title=escape(title), about=prose(_headline(abouts)), nav=f"<ul>\n{nav}</ul>", main=main, version=__version__,
        footer=prose(f"Made by qrkt-hw {__version__}: `qrkt-hw report {names}`. The page loads nothing from anywhere."),
    )  # fmt: skip
    if (size := len(whole.encode())) >= LARGEST:
        most = f"{LARGEST:,} at most are written"
        raise UserError(f"run: the page of {len(runs)} runs has {size:,} bytes, and {most}; name fewer of them")
    return whole, listed


def _section(part: Part, level: int) -> str:
    heading = f'<h{level} id="{part.key}">{part.title}</h{level}>'
    return f'<section aria-labelledby="{part.key}">{heading}\n{part.body}</section>\n'


def _headline(abouts: Sequence[About]) -> str:
    if len(abouts) > 1:
        return "What differs first, then each run."
    about = abouts[0]
    right = "" if about.accuracy is None else f": {percent(about.accuracy)} of the test split is right"
    return f"A {KINDS[about.options.model.kind]}, trained on {spelled(about.options.data.dataset)}{right}."
