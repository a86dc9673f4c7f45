"""Configurations, the command line, tables, the report."""

import base64
import dataclasses
import io
import itertools
import json
import re
import shutil
import subprocess
import warnings
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import torchddn as ddn
from torchddn.experiments import configuration, harness, tables
from torchddn.experiments.catalog import EXPERIMENTS
from torchddn.experiments.cli import app
from torchddn.experiments.clock import Clock
from torchddn.experiments.experiment import Experiment, Table
from torchddn.experiments.options import Options
from torchddn.experiments.plots import draw_curves, draw_tables
from torchddn.experiments.progress import Board, label
from torchddn.experiments.recipe import Recipe
from torchddn.experiments.record import cells, read_record
from torchddn.experiments.scores import expected_calibration_error, mean_average_precision, top_k


def invoke(*arguments):
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [str(argument) for argument in arguments])


def flowing(text):
    """Without the frame and the line breaks of the terminal."""
    return " ".join(re.sub(r"[│╭╮╰╯─\n]", " ", text).split())


QUICK = (
    "--preset", "digits", "--seed", 0, "--seed", 1, "--accelerator", "cpu", "--jobs", 1,
    "--set", "poolings=max,huber", "--set", "training.epochs=1", "--set", "test_outliers=0,0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    result = invoke("run", "pointcloud", *QUICK, "--output", folder)
    assert result.exit_code == 0, result.output
    assert "warning" not in result.output
    return folder


def copy_of(folder, tmp_path, change=lambda record: record):
    shutil.copytree(folder, tmp_path / "copy")
    record = change(json.loads((folder / "results.json").read_text()))
    (tmp_path / "copy" / "results.json").write_text(json.dumps(record))
    return tmp_path / "copy"


def rows(folder):
    return [job["rows"] for job in read_record(folder)["jobs"]]


class TestConfiguration:
    @dataclass(frozen=True)
    class Example:
        seeds: tuple[int, ...] = (0,)
        names: tuple[str, ...] = ("a", "b")
        share: float = 0.5
        limit: float | None = None
        on: bool = False
        training: Recipe = Recipe(epochs=3)  # noqa: RUF009

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("share=1", {"share": 1.0}),
            ("names=c", {"names": ("c",)}),
            ("names= c , d,", {"names": ("c", "d")}),
            ("seeds=1,2", {"seeds": (1, 2)}),
            ("limit=2", {"limit": 2.0}),
            ("limit=None", {"limit": None}),
            ("on=True", {"on": True}),
            ("training.epochs=7", {"training": Recipe(epochs=7)}),
            ("training.clip=1e-1", {"training": Recipe(epochs=3, clip=0.1)}),
        ],
    )
    def test_a_setting_changes_its_field(self, setting, expected):
        assert configuration.changed(self.Example(), [setting]) == dataclasses.replace(self.Example(), **expected)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("share", "must be key=value"),
            ("shares=1", "there is no 'shares'. Did you mean share?"),
            ("nonsense=1", "There are: seeds, names, share, limit, on, training."),
            ("training=3", "training has parts; set one of epochs, "),
            ("training.epoch=3", "Did you mean epochs?"),
            ("share.part=3", "share has no parts"),
            ("share=many", "must be of type float"),
            ("share=nan", "must be finite"),
            ("seeds=1.5", "must be of type int"),
            ("on=1", "must be true or false"),
            ("training.epochs=0", "must be positive, got 0"),
            ("=1", "there is no ''"),
        ],
    )
    def test_a_wrong_setting_is_refused(self, setting, message):
        with pytest.raises(ddn.InvalidInputError, match=re.escape(message)):
            configuration.changed(self.Example(), [setting])

    def test_json_and_back_is_the_same(self):
        for experiment in EXPERIMENTS.values():
            for config in experiment.presets.values():
                plain = json.loads(json.dumps(configuration.to_json(config)))
                assert configuration.from_json(type(config), plain) == config

    def test_a_configuration_of_another_version_is_refused(self):
        plain = configuration.to_json(self.Example())
        del plain["share"]
        with pytest.raises(ddn.InvalidInputError, match="another version of torchddn"):
            configuration.from_json(self.Example, plain)

    def test_differences_are_dotted(self):
        a, b = (configuration.to_json(self.Example(training=Recipe(epochs=epochs))) for epochs in (1, 2))
        assert configuration.differences(a, b) == {"training.epochs": (1, 2)}


class TestCatalog:
    @pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
    def test_every_experiment_keeps_its_promises(self, experiment):
        assert "small" in experiment.presets
        assert experiment.summary.strip()
        for config in experiment.presets.values():
            jobs = experiment.jobs(config)
            assert {job["seed"] for job in jobs} == set(config.seeds)
            assert len({label(job) for job in jobs}) == len(jobs)
            json.dumps([table.to_json() for table in experiment.tables(config)])

    def test_list_names_all(self):
        result = invoke("list")
        assert result.exit_code == 0
        assert all(name in result.output for name in EXPERIMENTS)


class TestRun:
    def test_record_says_how_it_was_made(self, folder):
        record = read_record(folder)
        assert record["experiment"] == "pointcloud"
        assert record["preset"] == "digits"
        assert record["config"]["seeds"] == [0, 1]
        assert record["config"]["training"]["epochs"] == 1
        assert record["options"]["accelerator"] == "cpu"
        assert {"torch", "torchddn", "lightning-fabric"} <= record["versions"].keys()
        assert {"cores", "system"} <= record["machine"].keys()
        assert [job["job"]["seed"] for job in record["jobs"]] == [0, 0, 1, 1]

    def test_every_promised_file_is_there(self, folder):
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        here = {"run.json", "results.json", "table.md", "pointcloud.png", "report.html", ".lock"}
        jobs = {
            f"jobs/{pooling}-0-{seed}/{name}"
            for pooling in ("max", "huber")
            for seed in (0, 1)
            for name in ("result.json", "model.csv", "model.pt")
        }
        assert names == here | jobs

    def test_a_finished_run_is_resumed_at_once(self, folder, tmp_path):
        again = copy_of(folder, tmp_path)
        before = (again / "jobs" / "max-0-0" / "model.pt").stat().st_mtime_ns
        result = invoke("resume", again)
        assert result.exit_code == 0, result.output
        assert (again / "jobs" / "max-0-0" / "model.pt").stat().st_mtime_ns == before
        assert read_record(again)["jobs"] == read_record(folder)["jobs"]

    def test_a_missing_job_is_done_and_gives_the_same(self, folder, tmp_path):
        again = copy_of(folder, tmp_path)
        shutil.rmtree(again / "jobs" / "huber-0-1")
        assert invoke("resume", again).exit_code == 0
        assert [job["rows"] for job in read_record(again)["jobs"]] == [
            job["rows"] for job in read_record(folder)["jobs"]
        ]

    @pytest.mark.slow
    def test_numbers_do_not_depend_on_how_many_jobs_run_beside_each_other(self, folder, tmp_path):
        arguments = [argument if before != "--jobs" else 2 for before, argument in itertools.pairwise(("", *QUICK))]
        assert invoke("run", "pointcloud", *arguments, "--output", tmp_path / "run").exit_code == 0
        assert rows(tmp_path / "run") == rows(folder)

    def test_runs_without_a_name_are_numbered(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "pointcloud-1").mkdir(parents=True)
        assert invoke("run", "pointcloud", *QUICK, "--set", "poolings=max").exit_code == 0
        assert (tmp_path / "runs" / "pointcloud-2" / "report.html").is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["pointclod"], "There is no experiment 'pointclod'. There are: pointcloud"),
            (["pointcloud", "--preset", "tiny"], "There is no preset 'tiny'. There are: paper, small, digits."),
            (["pointcloud", "--set", "epochs=3"], "there is no 'epochs'"),
            (["pointcloud", "--set", "training.epochs=3.5"], "must be of type int"),
            (["pointcloud", "--set", "poolings=median"], "must be of max, quadratic"),
            (["pointcloud", "--set", "dataset=cars"], "must be one of modelnet40, solids, digits"),
            (["pointcloud", "--set", "test_outliers=30"], "Divide per cent by 100"),
            (["pointcloud"], "The experiment needs ModelNet40: name its folder with --data"),
            (["pointcloud", "--data", "/no/such/folder"], "/no/such/folder"),
            (["pointcloud", "--preset", "digits", "--set", "poolings="], "leaves nothing to run"),
            (["pointcloud", "--preset", "digits", "--seed", "1", "--seed", "1"], "names a job twice: "),
            (["pointcloud", "--preset", "digits", "--accelerator", "tpux"], "The devices cannot be used"),
            (["pointcloud", "--accelerator", "cpu", "--devices", "0"], "`--devices` must be at least 1, got 0."),
            (["pointcloud", "--strategy", "deepspeed"], "must be one of auto, ddp"),
            (["pointcloud", "--precision", "8"], "must be one of 32-true"),
            (["pointcloud", "--devices", "2", "--jobs", "2"], "cannot be used with several devices"),
            (["pointcloud", "--preset", "digits", "--output", __file__], "is not a folder. Name another one"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = invoke("run", *arguments)
        assert result.exit_code == 2, result.output
        assert message in flowing(result.output)
        assert not (tmp_path / "runs").exists()

    def test_a_folder_of_wrong_data_is_refused_before_anything_runs(self, tmp_path):
        (tmp_path / "data").mkdir()
        result = invoke("run", "pointcloud", "--data", tmp_path / "data", "--output", tmp_path / "run")
        assert result.exit_code == 2
        assert "torchddn data check" in flowing(result.output)
        assert not (tmp_path / "run").exists()

    def test_a_run_does_not_replace_another(self, folder):
        result = invoke("run", "pointcloud", *QUICK, "--output", folder)
        assert result.exit_code == 2
        assert "has a run already" in flowing(result.output)

    def test_a_run_in_progress_is_not_taken_up(self, folder, tmp_path):
        again = copy_of(folder, tmp_path)
        with filelock.FileLock(again / ".lock"):
            result = invoke("resume", again)
        assert result.exit_code == 2
        assert "is in progress in another process" in flowing(result.output)

    @pytest.mark.parametrize("text", [None, "{", "[]", '{"experiment": "pointcloud"}'])
    def test_what_is_no_run_is_not_resumed(self, tmp_path, text):
        if text is not None:
            (tmp_path / "run.json").write_text(text)
        result = invoke("resume", tmp_path)
        assert result.exit_code == 2
        assert "run.json" in result.output


# An experiment that fails, at the top of the module as every experiment is.
@dataclass(frozen=True)
class Failing:
    seeds: tuple[int, ...] = (0, 1)


def fail(config, job, session):
    session.advance(1, 2)
    if job["seed"] == 1:
        raise KeyError("nothing here")
    return [{"size": 1, "score": 0.5}]


FAILING = Experiment(
    name="failing",
    summary="Fails.",
    presets={"small": Failing()},
    jobs=lambda config: [{"seed": seed} for seed in config.seeds],
    run=fail,
    tables=lambda config: [Table(title="Scores", value="score", row="size", column="seed")],
)


class TestFailure:
    def execute(self, tmp_path, experiment):
        options = Options(accelerator="cpu", jobs=1)
        plan = harness.Plan(experiment, "small", Failing(), options, None, "torchddn run failing")
        if not (tmp_path / "run.json").exists():
            harness.lay_out(plan, tmp_path)
        fabric = options.fabric()
        fabric.launch()
        return harness.execute(plan, tmp_path, fabric, Console(quiet=True))

    def test_a_job_that_fails_is_named_and_the_others_are_kept(self, tmp_path):
        with pytest.raises(harness.JobError, match="The job 1 has failed: KeyError: 'nothing here'"):
            self.execute(tmp_path, FAILING)
        assert "raise KeyError" in (tmp_path / "jobs" / "1" / "error.txt").read_text()
        assert (tmp_path / "jobs" / "0" / "result.json").is_file()
        assert not (tmp_path / "results.json").exists()
        repaired = dataclasses.replace(FAILING, run=lambda config, job, session: [{"size": 1, "score": 1.0}])
        record = self.execute(tmp_path, repaired)
        assert [job["rows"][0]["score"] for job in record["jobs"]] == [0.5, 1.0]

    def test_an_unfinished_run_has_no_report_and_says_what_to_do(self, tmp_path):
        with pytest.raises(harness.JobError):
            self.execute(tmp_path, FAILING)
        result = invoke("report", tmp_path)
        assert result.exit_code == 2
        assert "torchddn resume" in flowing(result.output)


def warn(config, job, session):
    for number in range(3):
        warnings.warn(f"number {number}", UserWarning, stacklevel=1)
    return [{"size": 1, "score": 1.0}]


def test_warnings_of_one_kind_are_told_once(tmp_path):
    record = TestFailure().execute(tmp_path, dataclasses.replace(FAILING, run=warn))
    assert [job["warnings"] for job in record["jobs"]] == [["number 0 (and 2 more like this)"]] * 2


RECORD = {
    "experiment": "example",
    "config": {"seeds": [0, 1]},
    "tables": [],
    "jobs": [
        {"rows": [{"size": 0.1, "way": "a", "seed": seed, "x": x}, {"size": 0.2, "way": "a", "seed": seed, "x": x / 2}]}
        for seed, x in ((0, 0.5), (1, 0.7))
    ]
    + [{"rows": [{"size": 0.1, "way": "b b", "seed": 0, "x": 0.1, "kind": "other"}]}],
}


def example(**changes):
    table = Table(title="X", value="x", row="size", column="way", **changes)
    return {**RECORD, "tables": [table.to_json()]}


class TestTables:
    def test_cells_are_mean_and_deviation_over_seeds(self):
        record = example()
        found = cells(record, record["tables"][0])
        assert found[0.1]["a"].mean == pytest.approx(0.6)
        assert found[0.1]["a"].deviation == pytest.approx(0.1 * 2**0.5)

    def test_where_leaves_rows_out(self):
        record = example(where={"kind": "other"})
        assert list(cells(record, record["tables"][0])) == [0.1]
        assert list(cells(record, record["tables"][0])[0.1]) == ["b b"]

    @pytest.mark.parametrize(("better", "bold"), [("high", "**60.0±14.1**"), ("low", "**10.0**"), (None, "")])
    def test_the_best_of_a_row_is_bold(self, better, bold):
        text = tables.markdown(example(scale="percent", row_scale="percent", better=better))
        row = next(line for line in text.splitlines() if line.startswith("| 10%"))
        assert bold in row
        assert row.count("**") == (2 if bold else 0)

    def test_numbers_of_the_paper_are_below_ours(self):
        paper = {"source": "table 9", 0.1: {"a": 0.614}}
        text = tables.markdown(example(scale="percent", paper=paper)).splitlines()
        assert "in italics: table 9" in text[0]
        row = next(number for number, line in enumerate(text) if line.startswith("| 0.1"))
        assert text[row + 1] == "|  | *61.4* |  |"

    def test_an_empty_table_is_not_shown(self):
        assert tables.markdown(example(where={"kind": "none"})).strip() == ""

    @pytest.mark.parametrize("log", [False, True])
    def test_numbers_are_drawn_as_lines_and_words_as_bars(self, log):
        record = example(log=log)
        (axes,) = draw_tables(record, record["tables"]).axes
        assert len(axes.lines) == 2
        assert (axes.get_xscale(), axes.get_yscale()) == (("log", "log") if log else ("linear", "linear"))
        turned = Table(title="X", value="x", row="way", column="size").to_json()
        (axes,) = draw_tables(record, [turned]).axes
        assert len(axes.patches) == 3

    def test_a_label_of_a_job_ends_with_its_seed(self):
        assert label({"seed": 3, "way": "a", "share": 0.5}) == "a-0.5-3"
        assert label({"way": "../L1 ball", "seed": 3}) == ".._L1_ball-3"


class TestCompare:
    def test_difference_is_second_minus_first(self, folder, tmp_path):
        def improve(record):
            for job in record["jobs"]:
                for row in job["rows"]:
                    if "top1" in row:
                        row["top1"] += 0.125
            record["config"]["training"]["epochs"] = 2
            return record

        result = invoke("compare", folder, copy_of(folder, tmp_path, improve))
        assert result.exit_code == 0, result.output
        assert Counter(re.findall(r"[+-]\d+\.\d", result.output)) == {"+12.5": 4, "+0.0": 4}
        assert "training.epochs: 1 -> 2" in result.output

    def test_one_run_is_too_few(self, folder):
        assert "Name two runs or more" in flowing(invoke("compare", folder).output)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "does not exist"),
            ("{", "cannot be read"),
            ("[]", "is not a record"),
            ('{"jobs": []}', "is not a record"),
        ],
    )
    def test_folder_without_record_is_refused(self, folder, tmp_path, text, message):
        if text is not None:
            (tmp_path / "results.json").write_text(text)
        result = invoke("compare", folder, tmp_path)
        assert result.exit_code == 2
        assert message in flowing(result.output)

    def test_records_of_different_experiments_are_refused(self, folder, tmp_path):
        other = copy_of(folder, tmp_path, lambda record: {**record, "experiment": "other"})
        result = invoke("compare", folder, other)
        assert result.exit_code == 2
        assert "different experiments, pointcloud and other" in flowing(result.output)


class TestCurves:
    POINTS = ({"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0, "validation_top1": 0.5})

    def named(self, *trainings):
        figure = draw_curves({training: list(self.POINTS) for training in trainings})
        return [text.get_text() for text in figure.axes[-1].get_legend().get_texts()], figure

    def test_trainings_that_differ_in_their_seed_have_one_name(self):
        names, figure = self.named(("huber-0-0", ""), ("huber-0-1", ""), ("max-0-0", ""))
        assert names == ["huber-0", "max-0"]
        assert [len(axes.lines) for axes in figure.axes] == [3, 3]

    def test_trainings_of_one_job_are_told_apart(self):
        names, _ = self.named(("0", "l1_sphere"), ("0", "none"), ("1", "l1_sphere"), ("1", "none"))
        assert names == ["l1 sphere", "none"]
        assert self.named(("wide-0", "none"), ("wide-1", "none"))[0] == ["wide none"]

    def test_without_points_there_is_no_figure(self):
        assert draw_curves({("max-0", ""): []}) is None


class Page(HTMLParser):
    """What a page refers to, and its headings."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.headings, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.inside in ("h1", "h2") and data.strip():
            self.headings.append(data.strip())


class TestReport:
    def test_the_page_needs_no_other_file(self, folder):
        page = Page((folder / "report.html").read_text())
        assert page.sources
        assert all(source.startswith("data:image/") for source in page.sources)
        assert {"pointcloud", "Curves", "Configuration", "Where the time went", "Machine"} <= set(page.headings)

    def test_the_page_shows_the_numbers_of_the_record_and_the_paper(self, folder):
        text = (folder / "report.html").read_text()
        record = read_record(folder)
        for line in tables.lines(record, record["tables"][0]):
            assert all(number in text for number in line.ours)
        assert '<span class="paper">72.2</span>' in text  # Huber at 30 %, table 4

    def test_what_a_user_wrote_cannot_become_code(self, folder, tmp_path):
        changed = copy_of(folder, tmp_path, lambda record: {**record, "command": "<script>alert(1)</script>"})
        assert invoke("report", changed).exit_code == 0
        assert "<script>" not in (changed / "report.html").read_text()

    def test_the_same_record_gives_the_same_report(self, folder, tmp_path):
        again = copy_of(folder, tmp_path)
        (again / "report.html").unlink()
        result = invoke("report", again)
        assert result.output.strip() == str(again / "report.html")
        assert (again / "table.md").read_text() == (folder / "table.md").read_text()

    def test_the_page_is_small(self, folder):
        assert (folder / "report.html").stat().st_size < 100_000

    def test_pictures_on_the_page_are_small_and_those_of_the_run_stay(self, folder, tmp_path):
        again = copy_of(folder, tmp_path)
        picture = again / "jobs" / "huber-0-0" / "pictures" / "noise.png"
        picture.parent.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(picture)
        content = picture.read_bytes()
        assert invoke("report", again).exit_code == 0
        assert picture.read_bytes() == content
        source = Page((again / "report.html").read_text()).sources[-1]
        shown = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert len(shown) < len(content) / 3
        with Image.open(io.BytesIO(shown)) as image:
            assert image.size == (200, 200)

    def test_a_browser_shows_every_picture(self, folder, tmp_path):
        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if browser is None:
            pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
        page = (folder / "report.html").read_text()
        # What the browser found, where --dump-dom shows it.
        probe = (
            "<script>onload = () => { const all = [...document.images]; document.title = "
            "`${all.filter(i => i.naturalWidth > 100).length} of ${all.length} pictures, "
            "${performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length} requests, "
            "${document.querySelectorAll('table.scores tbody tr').length} rows`; }</script></body>"
        )
        (tmp_path / "page.html").write_text(page.replace("</body>", probe))
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'page.html'}"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        title = re.search("<title>(.*?)</title>", done.stdout)
        assert title is not None, done.stderr
        # Two tables with a plot each, one with a single row, and the curves.
        assert title[1] == "3 of 3 pictures, 0 requests, 5 rows"

    def test_profile_adds_up(self, folder):
        result = invoke("profile", folder)
        shares = [float(share) for share in re.findall(r"([\d.]+)%", result.output)]
        assert sum(shares) == pytest.approx(100, abs=1)
        assert {"forward", "backward", "loading"} <= set(result.output.split())


class TestDataCheck:
    def test_what_is_no_data_set_is_told_and_fails(self, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing")
        result = invoke("data", "check", tmp_path)
        assert result.exit_code == 1, result.output
        assert "no known data set" in result.output

    def test_what_is_no_folder_is_refused(self, tmp_path):
        assert invoke("data", "check", tmp_path / "none").exit_code == 2


class TestClock:
    def test_a_phase_inside_another_is_charged_to_itself(self, monkeypatch):
        now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(now))
        clock = Clock()
        with clock("outer"), clock("inner"):
            pass
        assert clock.seconds == {"inner": 3.0, "outer": 6.0}


class TestOptions:
    def test_as_many_jobs_as_cores_but_not_more_than_wait(self):
        options = Options(accelerator="cpu")
        assert options.num_jobs(1) == 1
        assert options.num_jobs(1000) >= 1
        assert Options(accelerator="cpu", jobs=3).num_jobs(1000) == 3
        assert Options(accelerator="cpu", devices=2).num_jobs(1000) == 1
        assert Options(accelerator="cuda").num_jobs(1000) == 1


class TestBoard:
    def test_jobs_come_and_go(self):
        console = Console(file=None, record=True, width=120, force_terminal=True, quiet=False, stderr=True)
        with Board(console, 3, 1) as board:
            board.advance("first", 50, 100)
            board.advance("first", 75, 100)
            board.finish("first")
            board.finish("second, which said nothing")
        assert "3/3" in console.export_text()


class TestScores:
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9], [1.0, 0.9, 0.0], [0.0, 0.1, 0.2]])
    labels = torch.tensor([0, 2, 1, 2])

    def test_top_k_counts(self):
        assert top_k(self.logits, self.labels) == 0.5
        assert top_k(self.logits, self.labels, 2) == 1.0
        assert top_k(self.logits, self.labels, 5) == 1.0

    def test_average_precision_by_hand(self):
        logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
        # Class 0 by score: hit, miss, hit. Class 1 by score: miss, hit, miss.
        labels = torch.tensor([0, 1, 0])
        assert mean_average_precision(logits, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
        assert mean_average_precision(logits, labels, [1]) == pytest.approx(1 / 2)

    def test_a_class_without_items_is_left_out(self):
        logits = torch.cat([self.logits, torch.zeros(4, 1)], dim=1)
        assert mean_average_precision(logits, self.labels) > 0

    def test_calibration_error_by_hand(self):
        # Two items with confidence 0.75, one of them right; two with 0.6, both right.
        p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.6, 0.4], [0.4, 0.6]])
        labels = torch.tensor([0, 1, 0, 1])
        assert expected_calibration_error(p.log(), labels) == pytest.approx(0.5 * 0.25 + 0.5 * 0.4)
        assert expected_calibration_error(100 * p, torch.tensor([0, 0, 0, 1])) == pytest.approx(0, abs=1e-3)
