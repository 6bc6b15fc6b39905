"""``qrkt-hw infer``."""

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from qrkt_hw.backends.budget import LARGEST_JOB
from qrkt_hw.backends.entries import SERVICE_KEYS, SHOTS
from qrkt_hw.commands import interface as cli
from qrkt_hw.commands.options import (
    INFERRING,
    PROCESSES,
    check_used,
    defined,
    given,
    is_program,
    on_ranks,
    options_from,
    ranks_in,
)  # fmt: skip
from qrkt_hw.errors import UserError, flag, in_words, unknown
from qrkt_hw.runs.config import BackendConfig, Config, problem


@click.command(
    cls=cli.Command,
    first=("--split", "--limit", "--image", "--text", "--backend", "--shots", "--dry-run", "--max-cost", "--resume",
           "--json"),
    old={"samples": "limit", "images": "limit", "report": "value-errors"},
    examples="""
qrkt-hw infer                                   the newest run, test split
qrkt-hw infer runs/NAME photo.png               the class of a picture
qrkt-hw infer runs/NAME -b fake_torino -s 1024  with the noise of a device
qrkt-hw infer runs/NAME -b ibm_fez --limit 50 --dry-run    plan and price""",
)  # fmt: skip
@cli.run_argument
@click.argument("paths", nargs=-1, type=cli.PATH, metavar="[PATH]...")
@click.option("--split", type=cli.Word(["test", "validation"]), help="[default: test]")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=cli.PATH,
    help="an image file of the model's own size, taken as it is; repeat for more",
)
@click.option("--text", "texts", multiple=True, help="a text, for a run on texts; repeat for more")
@click.option("--limit", type=click.IntRange(min=1), help="only the first samples of the split")
@cli.data_dir_flag
@click.option("--resume", is_flag=True, help="resume an inference on a device that was stopped, by the same flags")
@click.option("--restart", is_flag=True, help="begin anew although one was stopped half-way")
@click.option("--dry-run", is_flag=True, help="on a device: the plan and its price; nothing is submitted")
@click.option(
    "--value-errors",
    is_flag=True,
    help="also the error of every layer's values, accuracies, mitigation, estimate and bill; as table, JSON, plot",
)
@click.option(
    "--compare-mitigation",
    is_flag=True,
    help="on a device: value error, accuracy and QPU seconds by every way of mitigation, side by side",
)
@click.option(
    "--ablate",
    multiple=True,
    type=cli.Word(["batch-mean", "sine"]),
    help="also the accuracy with every circuit's output replaced: by its batch mean, or by the sine of its input",
)
@click.option(
    "--shots-per-stage",
    "stage_shots",
    metavar="auto|N,N,...",
    help="on a device: shots of each sequential stage; auto: the QPU time of --shots, more where noise matters",
)
@click.option(
    "--fine-tune",
    type=click.IntRange(min=1),
    metavar="N",
    help="on a device: fit all but the circuits' angles to what it returns for N training images; priced and kept",
)
@click.option(
    "--repeat-uncertain",
    "repeat",
    type=click.IntRange(min=1),
    metavar="N",
    help="on a device: evaluate the N most uncertain samples twice, and take the mean of their logits; priced",
)
@click.option("--config", type=cli.PATH, help="a file of fit-to: device, shots, placement, mitigation; flags win")
@cli.trust_flag
@cli.json_flag
@options_from((*INFERRING, *PROCESSES))
@cli.device_flags
def infer(
    run: Path | None, paths: tuple[Path, ...], split: str | None, images: tuple[Path, ...], texts: tuple[str, ...],
    limit: int | None, data_dir: Path | None, ablate: tuple[str, ...], as_json: bool, resume: bool, restart: bool,
    dry_run: bool, device: dict[str, Any], value_errors: bool, stage_shots: str | None, fine_tune: int | None,
    repeat: int | None, trust_ansatz: bool, compare_mitigation: bool, config: Path | None, **flags: Any,
) -> None:  # fmt: skip
    """Accuracy, macro F1 and AUROC of RUN on a split, or class and probabilities of images or texts.

    PATHs are images of any size, folders of them, or for a run on texts files with one text in each line. Images are
    scaled and cropped as the training images were; digits are cut out, and their polarity is guessed.

    On a backend other than exact the accuracy there stands beside the exact one, with what it took. The weights are the
    same everywhere; where the run was trained does not matter.

    Without RUN, the newest run under runs/, named on the first line.
    """
    if run is not None and run.is_file():  # an input; the run is the newest
        paths, run = (run, *paths), None
    _refuse_together({*cli.said(), *(("PATHS",) if paths else ())}, paths)
    if config is not None:
        stage_shots = _configured(config, flags, stage_shots)
    stage_numbers = None if stage_shots in (None, "auto") else _numbers(stage_shots)
    if stage_numbers is not None and flags["shots"] is not None and not resume:  # journals have both
        raise UserError("--shots: --shots-per-stage has the shots of every stage; leave one of them out")
    from qrkt_hw import backends

    if flags["backend"] is not None:
        backends.check_name(flags["backend"], flags["backends_file"])
    folder = cli.opened(run, trust_ansatz, err=as_json)
    options, said = folder.options(), cli.console(stderr=True)
    kind = options.model.kind
    if kind == "gan":
        raise UserError(f"run: {folder.path} is a GAN, which classifies nothing; take qrkt-hw generate or evaluate")
    ranks = ranks_in(flags)
    if stage_numbers is not None and flags["shots"] is None:
        flags["shots"] = sum(stage_numbers) // len(stage_numbers)
    place = check_used(folder, {**flags, "data_dir": data_dir})
    if ablate and not options.has_circuits:
        raise UserError(f"--ablate: {folder.path} has no circuits to replace; leave it out")
    if (images or texts) and bool(texts) != (kind == "text"):
        wanted, reads = ("text", "texts") if kind == "text" else ("image", "images")
        raise UserError(f"--{'text' if texts else 'image'}: the model of {folder.path} reads {reads}; use --{wanted}")
    chosen: dict[str, Any] = {"split": split, "limit": limit, "images": [str(p) for p in images], "texts": list(texts),
                              "ablate": list(ablate), "data_dir": str(data_dir) if data_dir else None}  # fmt: skip
    if compare_mitigation:
        chosen["compare_mitigation"] = True
    if paths:
        chosen["paths"] = [str(path) for path in paths]
    with cli.busy(said, "loading torch and Qiskit"):
        if is_program():
            cli.import_connector()
        from qrkt_hw.experiments import devices, inference, loading

    backend = backends.make(place, options.training.seed, said, several=True)
    if dry_run or compare_mitigation:
        backend = with_shots(backend, place, options.training.seed, said)
    _refuse_several(backend, compare_mitigation, stage_shots, fine_tune, repeat)
    shots: list[int] = []
    if stage_shots is not None:
        shots, line = devices.shots_of_stages(folder, backend, stage_numbers, data_dir)
        said.print(line, highlight=False, soft_wrap=True)
        chosen["shots_per_stage"], flags["shots"] = ",".join(map(str, shots)), backend.shots  # what resumes it
    if fine_tune is not None:
        chosen["fine_tune"] = fine_tune
    if repeat is not None:
        chosen["repeat_uncertain"] = repeat
    kept: dict[str, Any] = {**chosen, **given(flags)}
    how: dict[str, Any] = {"resume": resume, "restart": restart, **device}
    limited = backends.check(backend, run=folder, kind="infer", arguments=kept, **how) is not None
    refuse_simulator(backend, dry_run, compare_mitigation, value_errors, fine_tune, repeat)
    from qrkt_hw.backends.device.packing import DeviceBackend
    from qrkt_hw.backends.several import Devices
    from qrkt_hw.data.base import DataShape
    from qrkt_hw.data.batches import first
    from qrkt_hw.models.factory import build_model
    from qrkt_hw.models.noise import check_strings
    from qrkt_hw.resources.forecast import BATCH, enlarge_batch, plan, share
    from qrkt_hw.resources.tables import summarize

    one_process = [
        (isinstance(backend, Devices), f"the list {backend.name!r} runs"),
        (compare_mitigation, "--compare-mitigation runs"),
        (backend.bills, f"{backend.name!r}, which bills its time, runs"),
        (dry_run, "--dry-run plans"),
        (fine_tune is not None, "--fine-tune fits"),
    ]
    alone = next((what for holds, what in one_process if holds), None)
    divided = ("--limit", limit) if limit else ("batches of", BATCH)
    on_ranks(options.replace(accelerator="cpu"), ranks, divided, alone)
    given_inputs = None
    with cli.busy(said, f"reading {'the given files' if paths or images else options.data.dataset}"):
        if paths:
            given_inputs = loading.read_paths(folder, paths)
        elif images or texts:
            given_inputs = loading.read_images(folder, images) if images else loading.read_texts(folder, texts)
        if given_inputs is None or fine_tune is not None:
            splits = loading.read_splits(folder, data_dir)
    samples: Any = first(splits[split or "test"], limit) if given_inputs is None else given_inputs.samples
    shape = DataShape.of(folder.description())
    if repeat is not None and repeat > len(samples):
        raise UserError(f"--repeat-uncertain: {repeat:,} samples, and {len(samples):,} are evaluated; give fewer")
    model = build_model(options, shape, backend)
    if fine_tune is not None:
        check_strings(model, "--fine-tune")  # before a device is paid for
        if fine_tune > (there := len(splits["train"])):
            raise UserError(f"--fine-tune: {fine_tune:,} images, and the training split has {there:,}")
    for line in summarize(model, shape, backend.shots, shots):
        said.print(line, highlight=False)
    # a plan beyond the backend's own limit is shown, one beyond the flags' is refused
    refuse = not resume and (not dry_run or device["budget"].flag is not None)
    if compare_mitigation:
        assert isinstance(backend, DeviceBackend)  # as it samples and has a target
        loading.trained(folder, model)
        ways = devices.plan_mitigations(model, shape, len(samples), backend, device["budget"], refuse)
        found: dict[str, Any] = {"backend": backend.name, "mitigations": [
            {"mitigation": way, **({"not_run": one} if isinstance(one, str) else one.record())}
            for way, one in ways.items()
        ]}  # fmt: skip
        if not dry_run:
            with backends.open(backend, run=folder, kind="infer", arguments=kept, console=said, **how):
                found = devices.compare_mitigations(folder, model, split or "test", samples, backend, ways, said)
        cli.told(found) if as_json else _mitigations(found)
        return
    parts = {"fitted": fine_tune or 0, "repeated": repeat or 0}
    if flags["mitigation"] is None:
        allowed = device["budget"]
        told = devices.correct_readout(folder, model, shape, len(samples), backend, resume, shots, allowed, **parts)
        if told is not None:
            said.print(told, highlight=False)
    largest = max(len(samples), fine_tune or 0)
    enlarge_batch(model, shape, largest, backend, shots, folder.journal if resume else None)
    batch = backend.batch or BATCH
    planned: Any = None
    if isinstance(backend, Devices):
        loading.trained(folder, model)
        planned = share(model, shape, len(samples), batch, backend, device["budget"], refuse)
    if isinstance(backend, DeviceBackend) and (dry_run or limited):
        loading.trained(folder, model)
        planned = plan(model, options, shape, len(samples), batch, backend, device["budget"], refuse, shots, **parts)
    if dry_run:
        assert planned is not None
        if as_json:
            more = {"stage_shots": shots} if shots else {}
            cli.told({"backend": backend.name, **planned.record(), **more})
        else:
            for line in planned.lines(backend.name):
                cli.echo(line)
        return
    with backends.open(backend, run=folder, kind="infer", arguments=kept, console=said, **how):
        if planned is None:
            loading.trained(folder, model)  # last: flags and files that are wrong are named before it
        tuned = None
        if fine_tune is not None:
            tuned = devices.fine_tuned(folder, model, backend, fine_tune, splits, said, shots)
            said.print(_fitted(tuned.record), highlight=False, soft_wrap=True)
        if given_inputs is not None:
            record = inference.classify(folder, model, given_inputs, backend, shots, tuned)
        else:
            record = inference.infer_split(
                folder, model, split or "test", samples, backend, ablate, said, value_errors, shots, tuned, repeat or 0
            )
    if value_errors and "layers" in record:
        from qrkt_hw.plots.charts import plot_device

        drawn = plot_device(record, folder.path / "plots" / f"inference-{record['backend']}.png")
        cli.echo(f"drawn to {drawn}", err=True)
    if as_json:
        cli.told(record)
    elif given_inputs is not None:
        for result in record[given_inputs.kind]:
            top = sorted(result["probabilities"].items(), key=lambda item: -item[1])[:3]
            shown = "  ".join(f"{name} {p:.3f}" for name, p in top)
            name = result["file"] if "file" in result else result["text"][:60]
            cli.echo(f"{name}: {result['class']}   ({shown})")
            if "converted" in result:
                cli.echo(f"  {result['converted']}")
    else:
        if limit is not None and record["count"] < limit:
            cli.echo(f"--limit {limit}: the split has {record['count']} samples, and all are taken", err=True)
        cli.echo(
            f"{record['split']}, {record['count']} samples on {record['backend']}: accuracy {record['accuracy']:.4f}  "
            f"F1 {record['f1']:.4f}  AUROC {defined(record['auroc'])}  ({record['seconds']:.2f} s)"
        )
        for name, found in record.get("ablations", {}).items():
            cli.echo(f"  circuits replaced by their {name.replace('-', ' ')}: accuracy {found['accuracy']:.4f}")
        if "exact_accuracy" in record:
            for line in [*_report(record, "texts" if kind == "text" else "images"), *_layers(record)]:
                cli.echo(line)


def _fitted(found: dict[str, Any]) -> str:
    damping = ", ".join(f"{response['damping']:.3f}" for response in found["layers"].values())
    loss = f"{found['loss_before']:.4f} before, {found['loss_after']:.4f} after"
    return (
        f"fitted to the device by {found['images']} training images in {found['seconds']:.0f} s: validation loss with "
        f"its response {loss}; damping of the layers {damping}"
    )


def _configured(file: Path, flags: dict[str, Any], stage_shots: str | None) -> str | None:
    """Shots of the stages, and into ``flags`` all others that were not given, of a file of fit-to.

    Raises UserError: it has no such section, or another key or a wrong value there."""
    from qrkt_hw.runs.folder import read_yaml

    values = read_yaml(file, f"--config: {file}")[0].get("inference")
    if not isinstance(values, dict):
        raise UserError(f"--config: {file} has no section 'inference', as qrkt-hw fit-to writes it")
    known = (*INFERRING, "shots_per_stage")
    odd = next((key for key in values if key not in known), None)
    if odd is not None:
        raise UserError(f"--config: {file}: in inference, {unknown('key', str(odd), known)}")
    try:
        Config(**{key: value for key, value in values.items() if key != "shots_per_stage"})
    except ValidationError as error:
        raise UserError(f"--config: {file}: {problem(error)[1]}") from error
    if flags["shots"] is None and stage_shots is None:  # the one replaces the other
        flags["shots"], stage_shots = values.get("shots"), values.get("shots_per_stage")
    for key in values.keys() - {"shots", "shots_per_stage"}:
        flags[key] = values[key] if flags[key] is None else flags[key]
    return None if stage_shots is None else str(stage_shots)


def _numbers(text: str) -> list[int]:
    """Shots of each sequential stage. Raises UserError: not such numbers, with commas between."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= n <= LARGEST_JOB for n in numbers):
        raise UserError(
            f"--shots-per-stage: {text!r} must be auto, or numbers from 1 to {LARGEST_JOB:,} with commas between"
        )
    return numbers


def _mitigations(record: dict[str, Any]) -> None:
    """The table of ``--compare-mitigation``."""
    rows, there = record["mitigations"], record.get("backend_details", {})
    ran = [row for row in rows if "not_run" not in row]
    if there:
        cli.echo(
            f"{record['split']}, {record['count']} samples on {record['backend']}, {there['shots']:,} shots a circuit; "
            f"exact accuracy {record['exact_accuracy']:.4f}"
        )
    added = [text for key, text in (
        ("coherent", f"two-qubit gates over-rotate by {there.get('coherent', 0):.1%}"),
        ("idle", f"idle qubits rotate by {there.get('idle', 0):g} rad/us about Z"),
    ) if there.get(key)]  # fmt: skip
    if added:
        cli.echo(f"errors added that the calibration does not have: {' and '.join(added)}")
    elif there.get("kind") == "fake backend":
        cli.echo("a fake backend has no coherent, idle or crosstalk errors, which twirling and decoupling are for: "
                 "coherent and idle in backends.yaml add them")  # fmt: skip
    measured = f"{'rms error':15}{'accuracy':^17}{'p':>6}" if there else ""
    cli.echo(f"{'mitigation':21}{measured}{'QPU s':>9}{'executions':>12}")
    for row in ran:
        figures = ""
        if there:
            (low, high), (least, most) = row["rms_interval"], row["interval"]
            figures = f"{row['rms_error']:.4f} +-{(high - low) / 2:.4f}  {row['accuracy']:.3f} {least:.2f}-{most:.2f}"
            figures += f"{row['p_value']:>6.2g}"
        cli.echo(f"{row['mitigation']:21}{figures}{row['seconds']:>9.1f}{row['executions']:>12,}")
    if there:
        cli.echo("rms error: of all values against the exact ones at the same inputs; with 95 % intervals over the "
                 "samples; p: of an accuracy equal to that of none (exact McNemar test)")  # fmt: skip
    else:
        cli.echo(f"{sum(row['seconds'] for row in ran):.1f} QPU seconds together; nothing is submitted")
    for row in rows:
        if "not_run" in row:
            cli.echo(f"{row['mitigation']:21}not run: {row['not_run']}")


SPLIT = ("--split", "--limit", "--data-dir", "--ablate", "--repeat-uncertain")  # options of an inference of a split
# an input or option, what it does, and what would change nothing beside it
TOGETHER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("--compare-mitigation", "--compare-mitigation compares all ways on a split",
     ("PATHS", "--image", "--text", "--ablate", "--value-errors", "--shots-per-stage", "--fine-tune",
      "--repeat-uncertain", "--mitigation", "--config", *map(flag, SERVICE_KEYS))),
    ("PATHS", "paths bring their own inputs", ("--image", "--text", *SPLIT, "--value-errors")),
    ("--value-errors", "--value-errors compares a split", ("--image", "--text")),
    ("--dry-run", "--dry-run only plans", ("--value-errors", "--ablate", "--resume", "--restart")),
    ("--image", "--image brings its own images", (*SPLIT, "--text")),
    ("--text", "--text brings its own texts", SPLIT),
)  # fmt: skip


def _refuse_together(said: set[str], paths: tuple[Path, ...]) -> None:
    """Refuse what was said and would change nothing beside something else."""
    for name, what, others in TOGETHER:
        if name in said and not said.isdisjoint(others):
            *first, last = ("paths" if other == "PATHS" else other for other in others)
            first_path = f" ({paths[0]})" if name == "PATHS" else ""
            raise UserError(f"{what}{first_path}; leave out {', '.join(first)} and {last}")


def _refuse_several(
    backend: Any, compare: bool, stage_shots: str | None, fine_tune: int | None, repeat: int | None
) -> None:
    """Refuse what is for one device."""
    asked = {"--compare-mitigation": compare, "--shots-per-stage": stage_shots, "--fine-tune": fine_tune,
             "--repeat-uncertain": repeat}  # fmt: skip
    flag = next((name for name, value in asked.items() if value), None)
    if flag and hasattr(backend, "devices"):
        raise UserError(f"{flag}: it is for one device, and --backend lists {len(backend.devices)}; name one of them")


def with_shots(backend: Any, place: BackendConfig, seed: int, console: Any) -> Any:
    """The backend; a fake one without shots takes those that a device takes by default, and the console says so."""
    if place.shots is not None or backend.target is None or backend.shots:
        return backend
    from qrkt_hw import backends

    console.print(f"{backend.name} takes {SHOTS:,} shots a circuit here, a device's default; --shots takes others")
    return backends.from_options(place.model_copy(update={"shots": SHOTS}), seed)


def refuse_simulator(
    backend: Any, dry_run: bool = False, compare: bool = False, value_errors: bool = False,
    fine_tune: int | None = None, repeat: int | None = None,
) -> None:  # fmt: skip
    """Refuse what only a device, or a backend other than the exact one, can do."""
    from qrkt_hw.backends.exact import ExactBackend

    if (dry_run or compare or repeat) and not (backend.target is not None and backend.shots):
        named = "--compare-mitigation" if compare else "--dry-run" if dry_run else "--repeat-uncertain"
        raise UserError(
            f"{named} applies only to devices that sample; backend {backend.name!r} does not: name a device, or a "
            "fake one (not with --shots 0)"
        )
    if fine_tune and isinstance(backend, ExactBackend):
        raise UserError(
            f"--fine-tune fits a model to what a device returns, and {backend.name!r} gives exact values; name a device"
        )
    if value_errors and isinstance(backend, ExactBackend):
        raise UserError(
            f"--value-errors compares a backend with the exact values, and {backend.name!r} gives them; name another"
        )


def _report(record: dict[str, Any], kind: str) -> list[str]:
    there = record["backend_details"]
    shots = f"{there['shots']:,} shots a circuit" if there["shots"] else "no shots: exact expectation values"
    if "stage_shots" in record:
        shots = f"{', '.join(map(str, record['stage_shots']))} shots in the stages"
    if "repeated" in record:
        shots += f"; the {record['repeated']:,} most uncertain {kind} twice"
    here, exact = record["discordant"]
    rows = [
        ("accuracy there", f"{record['accuracy']:.4f}   {_interval(record['interval'])}"),
        (f"exact, same {kind}", f"{record['exact_accuracy']:.4f}   {_interval(record['exact_interval'])}"),
        ("agreement", f"{record['agreement']:.4f}   {_interval(record['agreement_interval'])}"),
        ("correct only there", f"{here}, only on exact {exact}: p = {record['p_value']:.2g} (exact McNemar test)"),
        ("sampling", shots),
        ("circuit batches", str(record["rounds"])),
        ("used", f"{record['circuits']:,} circuits, {record['executions']:,} executions"),
        ("wall time", f"{record['wall_seconds']:.1f} s"),
        ("device", f"{there.get('device', there['name'])} ({there['kind']})"),
        ("calibrated", there.get("calibrated") or "no calibration: noiseless"),
    ]  # fmt: skip
    if "billed_seconds" in there:
        estimated = f"{there['jobs']} jobs, estimated {there['estimated_seconds']:.1f}"
        how = there.get("billing") or f"{there['plan']} plan, {there['mode']} mode"
        rows.append(("billed", f"{there['billed_seconds']:.1f} QPU seconds for {estimated} ({how})"))
    if "fell_back_from" in there:
        rows.append(("asked for", f"{there['fell_back_from']}, which cannot be used here"))
    for row in record.get("devices", ()):
        rows.append((row["device"], _share(row, kind)))
    return [f"  {name:20}{text}" for name, text in rows]


def _share(row: dict[str, Any], kind: str) -> str:
    """What one of several devices did."""
    said = f"{row['count']:,} {kind}"
    if row["count"]:
        said += f", accuracy {row['accuracy']:.4f}, {_interval(row['interval'])}"
    said += f", {row['taken_over']:,} of them begun elsewhere" if row["taken_over"] else ""
    said += f"; {row['billed_seconds']:.1f} s billed" if "billed_seconds" in row else ""
    return said + (f"; left out: {row['left_out']}" if "left_out" in row else "")


def _interval(ends: list[float]) -> str:
    return f"95 % interval {ends[0]:.4f} to {ends[1]:.4f} (Wilson)"


def _layers(record: dict[str, Any]) -> list[str]:
    """The table of ``--value-errors``."""
    if "layers" not in record:
        return []
    mitigated = any("unmitigated_mean_error" in row for row in record["layers"])
    words = in_words(row["layer"] for row in record["layers"])
    wide = max(map(len, ["layer", *words.values()]))
    lines = [f"  {'layer':{wide}}{'values':>11}{'mean error':>12}{'largest':>9}{'  unmitigated' if mitigated else ''}"]
    for row in record["layers"]:
        figures = f"{row['values']:>11,}{row['mean_error']:>12.4f}{row['max_error']:>9.4f}"
        raw = f"{row['unmitigated_mean_error']:>13.4f}" if "unmitigated_mean_error" in row else ""
        lines.append(f"  {words[row['layer']]:{wide}}{figures}{raw}")
    there = record["backend_details"]
    billed = there.get("billed_seconds")
    shown = "a fake backend bills nothing" if billed is None else f"{billed:.1f} s billed"
    lines.append(f"  QPU time            {there.get('estimated_seconds', 0.0):.1f} s estimated; {shown}")
    return lines
