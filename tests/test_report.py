"""The report is opened in a real browser that can reach nothing."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import samples

from landscape import plots
from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.report import write_report
from landscape.report.verdict import verdict
from landscape.results.comparison import Comparison, Measured
from landscape.study import Study
from landscape.study.contrast import APART

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed here")
VOID = {"meta", "img", "br", "link", "input", "hr"}
NAMES = (samples.HOSTILE, 'b" onmouseover="owned()', "%{x}</style><b>c</b>\u2028")


CHROME = [
    CHROMIUM,
    *("--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"),
]
"""A browser from which no host can be reached."""


def browse(page: Path, folder: Path) -> str:
    """Return the page as the browser has it after running it."""
    command = [*CHROME, f"--user-data-dir={folder}", "--virtual-time-budget=15000"]
    command += ["--enable-logging=stderr", "--window-size=1200,3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # what the software in place of a graphics card says of plotly's way to draw
    assert not [line for line in messages if not re.search("GPU stall|Multiple readback", line)]
    return without_plotly(done.stdout)


def without_plotly(source: str) -> str:
    """The page without the source of plotly.js."""
    return re.sub(r"<script>/\*\*.*?</script>", "", source, flags=re.S)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report on three checkpoints with hostile names, one surface not square and not whole."""
    one, other, third = (
        samples.sharp(NAMES[0]),
        samples.wide(NAMES[1], nx=9, ny=6, reach=0.5),
        samples.measured(NAMES[2]),
    )
    third = dataclasses.replace(third, surface=samples.with_bad_corner(third.surface))
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(samples.comparison(one, other, third), path, title=NAMES[0])


@pytest.fixture(scope="module")
def opened(hostile, tmp_path_factory):
    return browse(hostile, tmp_path_factory.mktemp("profile"))


def own_part(page: Path) -> str:
    return without_plotly(page.read_text())


class Checker(HTMLParser):
    """Collects what would be fetched or run, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.handlers, self.ids, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}:
                self.fetched.append(value)
            if name == "href" and tag != "a":
                self.fetched.append(value)
            if name.startswith("on"):
                self.handlers.append((tag, name))
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(source: str) -> Checker:
    checker = Checker()
    checker.feed(source)
    assert checker.open == []
    return checker


@needs_browser
def test_everything_is_drawn_with_no_network(opened):
    figures = 3  # reliefs
    assert f'data-drawn="{figures}"' in opened
    assert opened.count("js-plotly-plot") >= figures
    assert "main-svg" in opened
    assert "<canvas" in opened
    assert "WebGL is not supported" not in opened


@needs_browser
def test_hostile_names_do_nothing_and_are_readable(opened):
    assert "<title>owned" not in opened
    assert not re.search(r"<img[^>]*src=.?x\b", opened)
    assert "<b>c</b>" not in opened
    assert html.escape(NAMES[0], quote=False) in opened


@needs_browser
def test_without_its_policy_the_page_is_as_harmless_and_hovering_tells_the_loss(hostile, tmp_path):
    """Escaping alone holds; and plotly.js exchanges x and y in some attributes of a surface."""
    # Where the relief stands depends on its heights: look for it, and stay where it tells its loss.
    probe = """<script>let place = 0; setInterval(() => {
      const canvas = document.querySelector(".relief canvas");
      const box = canvas.getBoundingClientRect();
      const told = [...document.querySelectorAll("tspan")].some(t => /^loss /.test(t.textContent));
      if (!told) place = (place + 10) % 49;
      const x = 0.3 + 0.06 * (place % 7), y = 0.3 + 0.06 * Math.floor(place / 7);
      for (let k = 0; k < 4; k++) { canvas.dispatchEvent(new MouseEvent("mousemove", {bubbles: true,
        clientX: box.left + x * box.width + k, clientY: box.top + y * box.height, view: window})); }
    }, 400);</script></body>"""
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", hostile.read_text())
    bare = tmp_path / "bare.html"
    bare.write_text(source.replace("</body>", probe))
    seen = browse(bare, tmp_path / "profile")
    assert "<title>owned" not in seen
    assert not re.search(r"<img[^>]*src=.?x\b", seen)
    told = re.search(r">x ([-−.\d]+)</tspan>.*?>y ([-−.\d]+)</tspan>.*?>loss ([.\d]+)<", seen, re.S)
    assert told, "no hover label was drawn"
    x, y, loss = (float(number.replace("−", "-")) for number in told.groups())
    surface = samples.sharp().surface
    i, j = int(np.abs(surface.x - x).argmin()), int(np.abs(surface.y - y).argmin())
    assert i != j
    assert loss == pytest.approx(surface.loss[i, j], rel=1e-4)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A report on two checkpoints with a record of every kind."""
    models = [
        dataclasses.replace(make(name), others=tuple(other(name) for other in OTHERS))
        for name, make in (("SGD", samples.sharp), ("SAM", samples.wide))
    ]
    path = tmp_path_factory.mktemp("report") / "all.html"
    return write_report(samples.comparison(*models), path, command="landscape report SGD <SAM>")


PROBE = """<script>const waiting = setInterval(() => {
  if (!document.documentElement.dataset.drawn) { return; }
  clearInterval(waiting);
  const root = document.documentElement, width = innerWidth;
  const colour = (element) => getComputedStyle(element).color;
  const top = () => document.querySelector(".relief").layout.scene.zaxis.range[1];
  const height = top();
  document.querySelector("[data-to=log]").click();
  const shown = (name) => [...document.querySelectorAll(name)].map((e) => e.offsetWidth > 0);
  const chip = document.querySelector("button[data-colour]");
  const marks = () => document.querySelectorAll("svg .off").length;
  chip.click();
  const hidden = [marks(), document.querySelectorAll(".card.off").length];
  chip.click();
  setTimeout(() => { parent.document.documentElement.setAttribute("data-probe" + width,
    JSON.stringify({wide: root.scrollWidth - width, paper: getComputedStyle(document.body)
    .backgroundColor, ink: colour(document.querySelector(".card svg")),
    plot: document.querySelector(".relief").layout.font.color, linear: shown(".linear"),
    log: shown(".log"), hidden, left: marks(), still: shown(".still"), height,
    moved: top()})); }, 1500);
}, 500);</script></body>"""


def probe(page, folder, widths, *options):
    """What a script finds in the page in frames of some widths, by width."""
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    inner = html.escape(source.replace("</body>", PROBE), quote=True)
    frames = [f'<iframe width="{w}" height="3000" srcdoc="{inner}"></iframe>' for w in widths]
    outer = folder / "frames.html"
    outer.write_text(f"<!DOCTYPE html><html><body>{''.join(frames)}</body></html>")
    command = [*CHROME, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=25000"]
    command += ["--dump-dom", *options, outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = re.findall(r'data-probe(\d+)="([^"]*)"', done.stdout[:20_000])
    return {int(width): json.loads(html.unescape(text)) for width, text in found}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "paper", "ink"),
    [("1", "rgb(255, 255, 255)", "#1b1f23"), ("0", "rgb(20, 23, 27)", "#e6e9ec")],
)
def test_the_page_fits_every_width_in_both_themes_and_its_switches_work(
    everything, tmp_path, scheme, paper, ink
):
    widths = (400, 800, 1400) if scheme == "1" else (800,)
    dark = f"--blink-settings=preferredColorScheme={scheme}"
    found = probe(everything, tmp_path, widths, dark)
    assert set(found) == set(widths)
    for seen in found.values():
        assert seen["wide"] <= 0  # nothing to scroll to the right
        assert (seen["paper"], seen["plot"]) == (paper, ink)
        red, green, blue = (int(ink[k : k + 2], 16) for k in (1, 3, 5))
        assert seen["ink"] == f"rgb({red}, {green}, {blue})"
        assert (seen["linear"], seen["log"], seen["still"]) == ([False], [True], [False])
        assert seen["moved"] == pytest.approx(math.log10(seen["height"]))
        assert seen["hidden"][0] > 5  # the curves of SGD, in every picture
        assert seen["hidden"][1] == 1  # and its relief
        assert seen["left"] == 0


@needs_browser
@pytest.mark.slow
def test_the_page_prints_with_pictures_and_without_empty_pages(everything, tmp_path):
    target = tmp_path / "page.pdf"
    command = [*CHROME, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=12000"]
    command += ["--no-pdf-header-footer", f"--print-to-pdf={target}", everything.as_uri()]
    subprocess.run(command, capture_output=True, timeout=240, check=True)
    document = target.read_bytes()
    contents = re.findall(rb"/Type /Page\b.*?/Contents (\d+) 0 R", document, re.S)
    assert len(contents) > 5
    for number in contents:
        head = re.search(rb"\n%s 0 obj\n<<.*?/Length (\d+).*?stream\r?\n" % number, document, re.S)
        stream = zlib.decompress(document[head.end() : head.end() + int(head[1])])
        assert len(stream) > 2000
    assert document.count(b"/Subtype /Image") >= 2  # the reliefs, in place of WebGL


def test_the_page_opens_with_what_was_measured(everything):
    written = own_part(everything)
    summary = re.search(r'<p id="summary">(.*?)</p>', written, re.S)[1]
    assert " ".join(summary.split()) == (
        "2 checkpoints of a model with 40 and 77,754 parameters, measured on 1,437 train examples "
        "and 360 test examples, on 2026-01-02. "
        "Page made by <code>landscape report SGD &lt;SAM&gt;</code>."
    )


def test_the_page_begins_with_the_scale_that_its_surfaces_have(tmp_path):
    two = samples.comparison(samples.sharp(nx=6, ny=5), samples.wide(nx=6, ny=5))
    for scale, first in (("auto", "linear"), ("log", "log"), ("log-excess", "log")):
        source = own_part(write_report(two, tmp_path / "r.html", scale=scale))
        assert f'<html lang="en" data-scale="{first}">' in source
        assert f'data-to="{first}" aria-pressed="true"' in source
        assert source.index(f'class="card wide {first}"') < source.index('id="details"')


def test_a_run_over_epochs_has_a_picture(tmp_path):
    models = [
        Measured(name=name, eigenpairs=samples.eigenpairs(name))
        for name in (f"{run}-e{k}.pt" for run in ("adam", "sam") for k in range(1, 5))
    ]
    source = own_part(write_report(samples.comparison(*models), tmp_path / "r.html"))
    assert "One line for each run" in source.partition('id="sweep-eigs"')[2]


def test_a_run_leaves_the_spectra_to_the_checkpoints_with_several_eigenvalues(tmp_path):
    names = ["SGD", *(f"e{k}.pt" for k in range(1, 5))]
    pairs = [samples.eigenpairs(name, k=5 if name == "SGD" else 1) for name in names]
    models = [Measured(name=one.name, eigenpairs=one) for one in pairs]
    source = own_part(write_report(samples.comparison(*models), tmp_path / "r.html"))
    spectra, sweep = source.partition('id="spectra"')[2].split('id="sweep-eigs"')
    assert 'aria-label="Hessian eigenvalues of SGD."' in spectra
    assert 'aria-label="Hessian eigenvalues of e1.pt, e2.pt, e3.pt and e4.pt."' in sweep


@needs_browser
def test_a_single_interactive_figure_is_a_page_of_its_own(tmp_path):
    figure = plots.explore_comparison(samples.comparison())
    (path,) = plots.save_figure(figure, tmp_path / "x.html")
    seen = browse(path, tmp_path / "profile")
    assert 'data-drawn="1"' in seen
    (again,) = plots.save_figure(
        plots.explore_comparison(samples.comparison()), tmp_path / "y.html"
    )
    assert path.read_bytes() == again.read_bytes()
    with pytest.raises(InvalidArgumentError, match=r"an interactive figure is saved as .html"):
        plots.save_figure(figure, tmp_path / "x.png")


def test_nothing_is_fetched_and_nothing_inline_runs(hostile):
    checker = check(own_part(hostile))
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in checker.fetched)
    assert checker.handlers == []
    assert checker.tags.count("script") == 2  # the figures as data, and the page's own script
    assert not re.search(r"@import|url\((?!#)", own_part(hostile))


def test_only_scripts_whose_hash_is_in_the_policy_can_run(hostile):
    source = hostile.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source).group(1)
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert "unsafe-eval" not in policy
    allowed = re.search(r"script-src ([^;]*);", policy).group(1).split()
    scripts = re.findall(r"<script>(.*?)</script>", source, re.S)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed == [f"'sha256-{h}'" for h in hashes]
    assert "showSendToCloud: false" in scripts[-1]


def test_the_page_is_well_formed(hostile):
    source = hostile.read_text()
    head = r'<!DOCTYPE html>\n<html lang="en" data-scale="\w+">\n<head>\n<meta charset="utf-8">'
    assert re.match(head, source)
    checker = check(own_part(hostile))
    assert len(set(checker.ids)) == len(checker.ids)
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', source, re.S)
    figures = json.loads(data.group(1))
    assert set(figures) <= set(checker.ids)
    assert not set("<>&\u2028") & set(data.group(1))


def test_the_numbers_and_what_they_say_are_there(tmp_path):
    two = samples.comparison()
    written = own_part(write_report(two, tmp_path / "r.html"))
    for cell in (cell for row in two.table() for cell in row):
        assert html.escape(cell, quote=True) in written
    assert "<h1>How sharp are SGD and SAM?</h1>" in written
    assert "Both measures call SAM the flattest and SGD the sharpest." in written
    assert "hash-of-SGD" in written
    assert "x = [25 values from -1 to 1]" in written
    assert "landscape-sharpness 0.1.0, torch 2.13.0, numpy 2.4.6" in written
    for paper in ("2010.01412", "1712.09913", "1703.04933"):
        assert f'href="https://arxiv.org/abs/{paper}"' in written


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two checkpoints measured on the same, with few points, and the page about them."""
    two = samples.comparison(samples.sharp(nx=4, ny=3), samples.wide(nx=4, ny=3))
    return two, own_part(write_report(two, tmp_path_factory.mktemp("report") / "alike.html"))


@pytest.mark.parametrize(
    ("field", "value", "label", "texts", "said"),
    [
        (
            *("data_fingerprint", "other-data", "data (not the same)"),
            ("1,437 train examples, data-1-t", "1,437 train examples, other-da"),
            "on different data",
        ),
        (
            *("problem_fingerprint", "0123456789", "loss or model (not the same)"),
            ("problem-", "01234567"),
            "with different losses or models",
        ),
        (
            *("mode", "train", "mode (not the same)"),
            ("eval", "train"),
            "in different layer modes",
        ),
        (
            *("dtype", "float64", "dtype (not the same)"),
            ("float32", "float64"),
            "in different dtypes",
        ),
        (
            *("n_parameters", 12_345, "parameters (not the same)"),
            ("40", "12,345"),
            "in models of different size",
        ),
    ],
)
def test_what_was_measured_on_something_else_is_marked(
    alike, tmp_path, field, value, label, texts, said
):
    compared, page = alike
    sharp, wide = compared.models
    message = f"measured {said}: their numbers are not strictly comparable"
    assert message not in page
    everything = [role for role in wide.roles() if role != "test"]
    for roles in (everything, ["eigenpairs"]):
        apart = samples.comparison(sharp, moved(wide, roles, **{field: value}))
        cell = texts[1] if len(roles) > 1 else f"{texts[0]}; λmax: {texts[1]}"
        first, *others = compared.table()
        assert apart.table() == [first, (label, texts[0], cell), *others]
        assert message in own_part(write_report(apart, tmp_path / "apart.html"))


def moved(model, roles, **origin):
    """The checkpoint with some of its parts measured elsewhere."""
    parts = {role: getattr(model, role) for role in roles}
    places = {k: dataclasses.replace(part.provenance, **origin) for k, part in parts.items()}
    return dataclasses.replace(
        model, **{k: dataclasses.replace(parts[k], provenance=places[k]) for k in roles}
    )


def test_one_checkpoint_that_was_measured_on_two_data_sets_is_told_of():
    odd = moved(samples.sharp(), ["surface"], data_fingerprint="other-data")
    (said,) = verdict(samples.comparison(odd)).cautions
    assert said == (
        "The checkpoint was measured on different data: its numbers are not strictly comparable."
    )


def test_a_slope_is_held_against_the_sharpness_of_the_same_loss_only():
    model = samples.sharp()
    steep = dataclasses.replace(model.evaluation, gradient_norm=1e3)
    model = dataclasses.replace(model, evaluation=steep)
    for one, told in ((model, True), (moved(model, ["sharpness"], mode="train"), False)):
        cautions = verdict(samples.comparison(one)).cautions
        assert any("is not at a minimum" in text for text in cautions) == told


@pytest.mark.parametrize(
    ("origin", "ranked", "said"),
    [
        ({}, True, ""),
        ({"data_fingerprint": "other"}, False, "on different data, and are not compared"),
        ({"mode": "train"}, False, "in different layer modes, and are not compared"),
        ({"dtype": "float64"}, True, "in different dtypes: their numbers are not strictly"),
        ({"problem_fingerprint": "b"}, True, "with different losses or models: their numbers"),
    ],
)
def test_losses_on_held_out_data_are_ranked_where_they_are_of_the_same(origin, ranked, said):
    other = moved(samples.wide(), ["test"], **origin)
    found = verdict(samples.comparison(samples.sharp(), other))
    assert any("Loss on held-out data" in text for text in found.findings) == ranked
    told = [text for text in found.cautions if "measured" in text]
    assert len(told) == bool(said)
    assert all(said in text for text in told)


PARTS = {
    "a name only": Measured(name="a"),
    "loss": Measured(name="a", evaluation=samples.evaluation()),
    "surface": Measured(name="a", surface=samples.surface()),
    "worst line": Measured(name="a", worst_line=samples.line()),
    "random line": Measured(name="a", random_line=samples.line(direction="random")),
    "eigenvalues": Measured(name="a", eigenpairs=samples.eigenpairs()),
    "one eigenvalue": Measured(name="a", eigenpairs=samples.eigenpairs(k=1)),
    "sharpness": Measured(name="a", sharpness=samples.sharpness()),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts_are_left_out(tmp_path, part):
    page = write_report(samples.comparison(PARTS[part]), tmp_path / "r.html")
    checker = check(own_part(page))
    assert {"summary", "verdict", "numbers", "details", "reproduce"} <= set(checker.ids)
    assert ("worst_line" in checker.ids) == (part == "worst line")
    assert ("random_line" in checker.ids) == (part == "random line")
    assert ("surfaces" in checker.ids) == (part == "surface")
    assert ("spectra" in checker.ids) == (part == "eigenvalues")
    if part != "surface":
        assert page.stat().st_size < 300_000  # no plotly.js


OTHERS = (
    samples.training,
    samples.density,
    samples.trace,
    samples.profile,
    samples.path,
    samples.trajectory,
    samples.subset_sharpness,
    samples.stepwise,
    samples.blocks,
    samples.update_sharpness,
    samples.batch_sharpness,
    samples.average,
    samples.flatness,
    samples.differences,
    samples.diagnosis,
)


def test_whatever_else_was_measured_is_shown_with_all_its_numbers(everything):
    source = own_part(everything)
    for other in OTHERS:
        record = other("SGD")
        section = source.partition(f'id="kind-{record.kind}"')[2].partition("</section>")[0]
        assert f"<h2>{record.heading}</h2>" in section
        assert section.count("<svg") == (record.kind in plots.PICTURES)  # both in one picture
        assert section.count("<table") == (record.kind not in plots.PICTURES)
    read = " ".join(html.unescape(re.sub(r"<svg.*?</svg>", "", source, flags=re.S)).split())
    for other in OTHERS:
        for label, value in other("SGD").rows():
            assert " ".join(label.split()) in read
            assert " ".join(value.split()) in read


def test_every_kind_that_stands_for_itself_has_a_heading():
    assert {make().kind for make in OTHERS} == set(APART)
    assert all(make().heading for make in OTHERS)


def test_what_cannot_be_drawn_together_is_drawn_one_by_one(tmp_path):
    models = [
        dataclasses.replace(samples.measured(name), others=(samples.profile(name, p=p),))
        for name, p in (("a", 2.0), ("b", math.inf))
    ]
    source = own_part(write_report(samples.comparison(*models), tmp_path / "two.html"))
    assert source.partition('id="kind-profile"')[2].partition("</section>")[0].count("<svg") == 2


def test_a_study_gives_a_report_the_newest_of_each_further_kind(tmp_path):
    old, new = samples.profile("a", k=4), samples.profile("a", k=6)
    new = dataclasses.replace(new, settings={**new.settings, "again": True})
    with Study(tmp_path / "s.db") as study:
        for record in (samples.sharpness("a"), old, samples.training("a"), new):
            study.save(record)
        (model,) = study.comparison().models
    assert [one.kind for one in model.others] == ["training", "profile"]
    assert len(model.others[1].rhos) == 6


def test_parts_may_be_missing_of_some_checkpoints_only(tmp_path):
    parts = (dataclasses.replace(part, name=name) for name, part in PARTS.items())
    whole = samples.sharp(nx=6, ny=5)
    page = write_report(samples.comparison(*parts, whole), tmp_path / "r.html")
    ids = check(own_part(page)).ids
    assert {"relief-0", "relief-1", "worst_line", "random_line", "spectra"} <= set(ids)


def test_many_checkpoints_take_part(tmp_path):
    many = samples.comparison(*(samples.measured(f"m{k}", nx=4, ny=3) for k in range(5)))
    checker = check(own_part(write_report(many, tmp_path / "r.html")))
    assert sum(value.startswith("relief-") for value in checker.ids) == 5


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
    one = write_report(samples.comparison(samples.sharp(nx=6)), tmp_path / "a.html")
    other = write_report(samples.comparison(samples.sharp(nx=6)), tmp_path / "b.html")
    assert one.read_bytes() == other.read_bytes()


def test_a_comparison_of_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidArgumentError, match="holds no checkpoint"):
        write_report(Comparison(models=()), tmp_path / "r.html")


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    model = samples.comparison(PARTS["loss"])
    with pytest.raises(LandscapeError, match="a folder of that name is in the way"):
        write_report(model, tmp_path)
    with pytest.raises(LandscapeError, match=r"the folder .* does not exist"):
        write_report(model, tmp_path / "no" / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(LandscapeError, match="cannot write"):
        write_report(model, tmp_path / "file" / "r.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_checker_fails_when_it_should():
    with pytest.raises(AssertionError):
        check("<p><b></p></b>")
    seen = check('<p><img src="http://x.y/z.png" onerror="f()"></p>')
    assert seen.fetched == ["http://x.y/z.png"]
    assert seen.handlers == [("img", "onerror")]


def test_what_a_check_says_stands_in_one_cell(tmp_path):
    diagnosis = samples.diagnosis("a.pt")
    check = dataclasses.replace(diagnosis.checks[0], finding="word " * 60, advice="do it well")
    diagnosis = dataclasses.replace(diagnosis, checks=(check, *diagnosis.checks[1:]))
    model = Measured(name="a.pt", others=(diagnosis,))
    page = write_report(Comparison(models=(model,)), tmp_path / "x.html").read_text()
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert any(cell.count("word") == 60 and "what to do: do it well" in cell for cell in cells)
