"""The page of ``qrkt-hw report``: whole, self-contained, accessible, true to the run, and refused in one sentence."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from qrkt_hw.commands import group
from qrkt_hw.commands.options import merge
from qrkt_hw.data.text import encode, load, texts_of
from qrkt_hw.experiments.comparison import INCIDENTAL
from qrkt_hw.experiments.report import LARGEST, PARTS, repeating
from qrkt_hw.experiments.report_run import About, ablations, nameless, on_devices, spelled
from qrkt_hw.plots.page import matrix, percent, prose
from qrkt_hw.runs import RunFolder
from qrkt_hw.runs.config import KEYS, DataConfig, unused
from tests.acceptance.browser import needs_axe, serious, sideways, started
from tests.command_line import qrkt, refused, trained
from tests.fuzz.subjects import acl_imdb
from tests.runs.trained import GAN, SMALL

pytestmark = pytest.mark.acceptance
ROOT = Path(__file__).parents[2]
VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a page holds; an element that is not closed, or closed twice, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.labels: list[str] = []  # aria-labelledby
        self.headings: list[int] = []
        self.pictures: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs), (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        self._keep(tag, found)

    def handle_startendtag(self, tag, attrs):
        self._keep(tag, dict(attrs))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def _keep(self, tag, found):
        self.ids += [found["id"]] if "id" in found else []
        self.targets += [found[key] for key in ("href", "src") if key in found]
        self.labels += [found["aria-labelledby"]] if "aria-labelledby" in found else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.pictures += [(tag, found)] if tag in ("img", "svg") else []


def check(file: Path) -> Page:
    """Make sure that a page is well formed, loads nothing, and can be read by anybody."""
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text.encode()) < LARGEST <= 3_000_000
    assert len(set(page.ids)) == len(page.ids)
    for target in page.targets:
        assert target.startswith(("#", "data:image/png;base64,")), target
        assert target[0] != "#" or target[1:] in page.ids, target
    assert set(page.labels) <= set(page.ids)
    assert set(re.findall(r"url\((?!#)", text)) == set() and "@import" not in text and "<script" not in text
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert page.headings.count(1) == 1 and page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert page.pictures
    for tag, found in page.pictures:
        assert found.get("alt") if tag == "img" else found.get("role") == "img" and found.get("aria-label"), found
    return page


def asked(cwd: Path, *words: object) -> dict:
    done = qrkt("report", *words, "--backend", "fake_lima", "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def home(charts, tmp_path_factory):
    """A folder with a run that was on a fake device and ablated, and its page; another seed, and a classical run."""
    folder = tmp_path_factory.mktemp("report")
    trained(folder, *SMALL, "--patch", 4)
    trained(folder, *SMALL, "--patch", 4, "--seed", 1, out="second")
    trained(folder, *SMALL, "--patch", 4, "--projection", "classical", out="classical")
    for more in (["-b", "fake_lima", "-s", 32, "--limit", 4, "--value-errors"], ["--ablate", "sine"]):
        done = qrkt("infer", "run", *more, cwd=folder)
        assert done.returncode == 0 and "blocks." not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def page(home):
    """What ``report run --json`` tells, and the page."""
    done = qrkt("report", "run", "--json", cwd=home)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # layout and price are of fake_lima, where the run was
    return told, (home / told["file"]).read_text(encoding="utf-8")


def test_the_page_has_every_part_and_says_what_the_run_recorded(home, page):
    told, text = page
    assert told["file"] == "run/report.html" and told["bytes"] == len(text.encode())
    wanted = [key for key in PARTS if key != "images"]  # of a GAN
    assert [part["part"] for part in told["parts"]] == wanted and not any(part["missing"] for part in told["parts"])
    found = check(home / told["file"])
    assert set(wanted) <= set(found.ids) and {f"#{key}" for key in wanted} <= set(found.targets)
    results = json.loads((home / "run" / "results.json").read_text())
    assert f"<dd>{percent(results['test']['accuracy'])}</dd>" in text
    assert f"<dd>{results['parameters']['total']:,}</dd>" in text
    right = round(results["test"]["accuracy"] * 360)
    assert f"{right} of the 360 test images are right" in text and "That is the recorded accuracy." in text
    cells = [int(n or 0) for n in re.findall(r'<td[^>]* style="--v:[^>]*>(\d*)</td>', text)]
    assert sum(cells) == 360 and sum(cells[::11]) == right  # the diagonal of ten classes
    (record,) = [json.loads(f.read_text()) for f in (home / "run" / "inference").glob("*fake_lima.json")]
    assert "fake_lima: 4 samples, 32 shots a circuit" in text  # priced as it ran
    assert "fake_lima, 4 samples of test" in text and f"{record['executions']:,}</td>" in text
    assert text.count('src="data:image/png') == min(24, 360 - right)  # the mistakes
    for words in ("Without a quantum computer it is", "None was trained: <code>qrkt-hw baseline run</code>"):
        assert words in text, words


def test_one_part_that_is_missing_says_which_command_fills_it(home):
    told = asked(home, "second", "-o", "second.html")
    missing = {part["part"]: part["missing"] for part in told["parts"] if part["missing"]}
    assert set(missing) == {"ablations", "devices"}
    assert "`qrkt-hw infer second --ablate batch-mean --ablate sine`" in missing["ablations"]
    assert "`qrkt-hw infer second --backend fake_torino --limit 100`" in missing["devices"]
    quiet = qrkt("report", "second", "-o", "again.html", "-q", "-b", "fake_lima", cwd=home)
    assert (quiet.stdout, quiet.stderr) == ("again.html\n", "")
    assert (home / "again.html").read_bytes() == (home / "second.html").read_bytes()  # nothing in it is of today


@pytest.fixture(scope="module")
def several(home):
    """The same of three runs, two of which differ in the seed alone."""
    return asked(home, "run", "second", "classical", "--limit", 50)


def test_several_runs_beside_each_other(home, several):
    told = several
    text, found = (home / "report.html").read_text(encoding="utf-8"), check(home / "report.html")
    assert told["file"] == "report.html" and {"comparison", "run-1-trained", "run-3-mistakes"} <= set(found.ids)
    assert '<th scope="row">projection</th><td>quantum</td><td>classical</td>' in text
    shared = [part for part in told["parts"] if part["missing"] and "The same as of run" in part["missing"]]
    assert [(part["run"], part["part"]) for part in shared] == [("second", k) for k in ("circuit", "chip", "price")]
    assert not {"circuit", "price", "devices"} & {p["part"] for p in told["parts"] if p["run"] == "classical"}
    assert "of the first 50 test images" in text and "run and 1 more" in text


def test_a_training_that_is_not_finished(home, tmp_path):
    run = tmp_path / "<b>half & half"
    shutil.copytree(home / "second", run)
    for name in ("results.json", "model.safetensors"):
        (run / name).unlink()
    told = asked(tmp_path, run.name)
    check(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<h1>&lt;b&gt;half &amp; half</h1>" in text and "The training is not finished" in text
    said = next(part["missing"] for part in told["parts"] if part["part"] == "mistakes")
    assert "`qrkt-hw train --resume '<b>half & half'` resumes the training" in said


@pytest.mark.parametrize(("name", "part"), [("metrics.csv", "curves"), ("model.safetensors", "mistakes")])
def test_a_file_that_a_finished_run_lost_is_named(home, tmp_path, name, part):
    shutil.copytree(home / "second", tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    told = asked(tmp_path, "run", "--limit", 1)
    check(tmp_path / "run" / "report.html")
    missing = next(one["missing"] for one in told["parts"] if one["part"] == part)
    assert f"`{name}` of this finished run is missing" in missing and "--resume" not in missing
    assert "for 0 of 1 epochs" not in (tmp_path / "run" / "report.html").read_text()


def rows_under(text: str, caption: str) -> list[list[str]]:
    """The cells of the table with that caption, row by row."""
    (table,) = re.findall(f"<caption>{caption}</caption>.*?</table>", text, re.S)
    return [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in re.findall("<tr>.*?</tr>", table)]


def test_inferences_say_what_they_were(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "second", run)
    Image.new("L", (8, 8)).save(tmp_path / "digit.png")
    assert qrkt("infer", "run", "--image", "digit.png", "-b", "fake_lima", "-s", 48, cwd=tmp_path).returncode == 0
    kept = run / "inference"
    staged = json.loads(next((home / "run" / "inference").glob("*lima.json")).read_text())
    (kept / "1.json").write_text(json.dumps({**staged, "stage_shots": [8, 1056], "repeated": 2}))
    (kept / "0.json").write_text('{"backend": "ibm_fez", "count": 7, "images": [], "seconds": 1.0}')  # an earlier one
    for limit in (3, 5):
        assert qrkt("infer", "run", "--ablate", "sine", "--limit", limit, cwd=tmp_path).returncode == 0
    asked(tmp_path, "run", "--limit", 1)
    text = (run / "report.html").read_text(encoding="utf-8")
    sampled = {row[0]: row[1:] for row in rows_under(text, "Accuracy there and on the exact simulator")}
    assert sampled["fake_lima, 1 samples"][:2] == ["48", "none"] and sampled["ibm_fez, 7 samples"][:2] == ["-", "-"]
    assert sampled["fake_lima, 4 samples of test, 2 of them twice"][0] == "8, 1,056 in the stages"
    bills = {row[0]: row[5] for row in rows_under(text, "What it took")}
    assert (bills["fake_lima, 1 samples"], bills["ibm_fez, 7 samples"]) == ("nothing", "-")  # nobody knows
    rows = rows_under(text, "Circuits&#x27; outputs replaced by something else")
    for record in (json.loads(file.read_text()) for file in kept.glob("*exact.json")):  # beside the same samples
        here = rows.index([f"{record['count']} samples of test on exact"])
        assert rows[here + 1][:2] == ["nothing", percent(record["accuracy"])]
        assert rows[here + 2][1] == percent(record["ablations"]["sine"]["accuracy"])


def test_options_that_differ_in_their_folder_alone_are_shown(home, tmp_path):
    for name in "ab":
        shutil.copytree(home / "second", tmp_path / name)
        config = (tmp_path / name / "config.yaml").read_text()
        (tmp_path / name / "config.yaml").write_text(config.replace("dataset: digits", f"dataset: folder:/{name}/pets"))
    asked(tmp_path, "a", "b")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">dataset</th><td>folder:pets</td><td>folder:pets</td>' in text


def test_data_that_are_not_there_are_asked_for(home, tmp_path):
    run = tmp_path / "elsewhere"
    shutil.copytree(home / "second", run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("dataset: digits", "dataset: folder:/dear home/of zoe/pets"))
    told = asked(tmp_path, "elsewhere")
    check(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")  # the picture that training drew stands in
    assert "trained on <code>folder:pets</code>" in text and "dear" not in text and "zoe" not in text
    assert "<code>qrkt-hw report elsewhere --data-dir DIR</code> fills this part" in text and 'class="drawn"' in text
    assert not next(part["missing"] for part in told["parts"] if part["part"] == "mistakes")


def test_baselines_of_the_run_stand_beside_it(home, tmp_path):
    shutil.copytree(home / "second", tmp_path / "run")
    shutil.copytree(home / "classical", tmp_path / "run-baseline" / "size-matched" / "lr-0.01")
    sides = {"quantum": {"chosen": "run"}, "size-matched": {"chosen": "moved/size-matched/lr-0.01"}}
    (tmp_path / "run-baseline" / "baselines.json").write_text(json.dumps({"sides": sides}))
    asked(tmp_path, "run", "--limit", 1)
    check(tmp_path / "run" / "report.html")
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="col">quantum</th><th scope="col">size-matched</th>' in text


def test_a_gan_shows_its_images(tmp_path):
    trained(tmp_path, *GAN, out="gan")
    metrics = tmp_path / "gan" / "metrics.csv"  # as --live-fid 2 leaves them
    header, row = metrics.read_text().splitlines()
    again = [f"{k},{row.partition(',')[2]},{fid}" for k, fid in ((1, "nan"), (2, 31.5), (3, "nan"))]
    metrics.write_text("\n".join([f"{header},fid", *again]) + "\n")
    told = asked(tmp_path, "gan")
    check(tmp_path / "gan" / "report.html")
    assert "FID over 3 epochs; at the end measured in training 31.500" in (tmp_path / "gan" / "report.html").read_text()
    assert "images" in {part["part"] for part in told["parts"]}
    assert not {"mistakes", "ablations"} & {part["part"] for part in told["parts"]}
    assert "<code>qrkt-hw evaluate gan</code> gives FID" in (tmp_path / "gan" / "report.html").read_text()


def test_texts_are_those_of_the_samples(tmp_path):
    acl_imdb(tmp_path)
    options = DataConfig(dataset="imdb", data_dir=tmp_path, text_length=8, vocabulary=30)
    data = load(options)
    for split in ("train", "validation", "test"):
        written = texts_of(options, split)
        assert len(written) == len(data.splits[split])
        again = encode(written, data.vocabulary, 8)
        assert (again == data.splits[split].inputs).all(), split


def options_of(line: str):
    """The configuration that a command line of train has."""
    _, name, *words = shlex.split(line)
    command = group.get_command(None, name)
    context = click.Context(command)
    given = command.make_parser(context).parse_args(words)[0]
    named = [p for p in command.params if p.name in given and p.name in (*KEYS, "preset")]
    flags = {p.name: p.type_cast_value(context, given[p.name]) for p in named}
    return merge(flags.pop("preset", None), None, flags)


def test_the_command_repeats_the_options():
    folders = [file.parent for file in sorted((ROOT / "results").glob("*/seed-[04]*/config.yaml"))][::4]
    assert len(folders) >= 7
    for folder in folders:
        about = About(RunFolder.open(folder), Console(quiet=True))
        line = repeating(about)
        assert line.startswith("qrkt-hw train "), folder
        found, wanted = options_of(line).flat(mode="json"), about.options.flat(mode="json")
        odd = {key for key in wanted if found.get(key) != wanted[key] and not unused(about.options, [key])}
        odd -= INCIDENTAL - {"seed"}
        assert not odd, (folder, line, odd)


def test_device_runs_of_every_kept_run_are_read():
    files = [*(ROOT / "results").glob("*/seed-0/devices.json"), *(ROOT / "results").glob("*/seed-0/ablations.json")]
    assert len(files) > 9
    for folder in {file.parent for file in files}:
        about = About(RunFolder.open(folder), Console(quiet=True))
        for file, part in (("devices.json", on_devices), ("ablations.json", ablations)):
            assert not (folder / file).is_file() or "<table" in str(part(about)), (folder, file)


def test_a_run_on_several_devices_is_placed_and_priced_on_them():
    about = About(RunFolder.open(ROOT / "results" / "digits-device" / "seed-0"), Console(quiet=True))
    names = {"backend": "fake_quito,ibm_fez", "backend_details": {"device": "fake_quito, ibm_fez"}}
    about.__dict__["records"] = [(Path(), names)]
    assert about._known() == ["fake_quito", "fake_fez"]


def test_wrong_inputs_are_refused_in_one_sentence(home, tmp_path):
    refused(qrkt("report", "nothing", cwd=home), "no folder nothing")
    refused(qrkt("report", "run/results.json", cwd=home), "run/results.json is a file", "folder")
    refused(qrkt("report", "run", "run", cwd=home), "named twice")
    refused(qrkt("report", "run", "-o", "nowhere/a.html", cwd=home), "--out", "nowhere")
    refused(qrkt("report", "run", "-o", "second", cwd=home), "--out", "second is a folder")
    refused(qrkt("report", "run", "--backend", "fake_nothing", cwd=home), "--backend", "fake_nothing")
    for name, content in (
        ("results.json", "{"), ("results.json", "[]"), ("results.json", '{"test": {"accuracy": "high"}}'),
        ("results.json", '{"test": 3}'), ("metrics.csv", "epoch\nx\n"), ("environment.json", '{"packages": 3}'),
        ("inference/1.json", '{"backend": "fake_lima", "count": "a"}'), ("inference/2.json", '{"ablations": [1]}'),
        ("devices.json", "{}]"), ("plan-a.json", '{"backend": "fake_lima"}'), ("origin.json", "{"),
    ):  # fmt: skip
        run = tmp_path / "spoilt"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / "second", run)
        (run / "inference").mkdir(exist_ok=True)
        (run / name).write_text(content)
        refused(qrkt("report", "spoilt", "--limit", 1, "-b", "fake_lima", cwd=tmp_path), name, "damaged")
        assert not (run / "report.html").exists()


def test_text_is_escaped_and_names_no_folder_of_a_machine():
    assert nameless("--dataset x: no files in /home/me/x, data; get it from https://a.b/c/d") == (
        "--dataset x: no files in x, data; get it from https://a.b/c/d"
    )
    assert (nameless("folder:/home/me/pets"), nameless("/home/me/mine.py:f")) == ("folder:pets", "mine.py:f")
    assert spelled("folder:/home/jane doe/my pets") == "folder:my pets"
    assert prose("a <b> `c & d`") == "a &lt;b&gt; <code>c &amp; d</code>"


def test_a_class_without_samples_has_no_accuracy():
    shown = matrix(np.array([[2, 1], [0, 0]]), ["<cat>", "dog"])
    assert "&lt;cat&gt;</th>" in shown and "<td>66.67 %</td></tr>" in shown and "<td>-</td></tr>" in shown


@pytest.fixture(scope="module")
def chromium():
    with started() as browser:
        yield browser


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def shown(request, chromium, home):
    """Opens a file of ``home`` and returns the page, what went wrong on it, and the scheme."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)

    def open_page(file):
        page, wrong = context.new_page(), list[str]()
        page.on("console", lambda said: wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(sent.url) if "http" in sent.url[:5] else None)
        page.goto((home / file).as_uri(), wait_until="load")
        return page, wrong, scheme

    yield open_page
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["page", "several"])
def test_the_page_in_a_browser(shown, page, several, which):
    """Sections, keyboard, both themes, print; nothing scrolls sideways or errs."""
    told = page[0] if which == "page" else several
    view, wrong, scheme = shown(told["file"])
    for part in told["parts"]:
        assert view.get_by_role("heading", name=part["title"], exact=True).first.is_visible(), part
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.className") == "skip"
    assert view.locator(".skip").bounding_box()["x"] >= 0  # seen where it has the focus
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.closest('nav') !== null")
    view.keyboard.press("Enter")
    assert view.evaluate("location.hash") in (f"#{key}" for key in ("trained", "comparison"))
    ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark"), ground
    view.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert sideways(view) <= 0
    view.emulate_media(media="print")
    assert not view.locator("nav").is_visible()
    assert view.pdf(format="A4").startswith(b"%PDF") and not wrong, wrong


@pytest.mark.slow
@needs_axe
@pytest.mark.parametrize("which", ["page", "several"])
def test_the_page_is_accessible_by_axe_core(shown, page, several, which):
    """No serious finding, with all that can be unfolded unfolded."""
    view, *_ = shown((page[0] if which == "page" else several)["file"])
    view.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert serious(view) == []
