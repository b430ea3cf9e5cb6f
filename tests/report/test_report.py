import json
import re
from html.parser import HTMLParser

import pytest
from two_layers import FULL, SHAPE

from diminuendo.errors import UserError
from diminuendo.report import Table, write_report
from diminuendo.report.curves import Curves, draw_curves
from diminuendo.training import front_end

COMPRESS = {"command": "compress", "recipe": "dphubert", "model": "a&b", "config": {"keep": "params=0.5", "steps": 4}}
RESULT = {
    "params": {"teacher": 94_371_712, "student": 23_592_928, "kept": 0.25},
    "macs_per_second": {"teacher": 7.168e9, "student": 2e9, "kept": 0.279},
    "expected_before_selection": 0.2631,
    "removal_error": 3.2e-7,
    "shape": SHAPE,
    "full_shape": FULL,
    "steps": [4, 2],
    "out": "/somewhere/private",
    "seconds": 7200.0,
}
JOINT = {"distillation": 0.5, "l1": 0.4, "cosine": 0.1, "expected_kept": 0.9, "target_kept": 0.5}
JOINT |= {"multiplier_1": 0.1, "multiplier_2": 0.2}
COMPRESS_LOG = [
    {"stage": "joint", "step": s, "total_step": s, "loss": 1 / s, **JOINT, "audio_seconds_per_second": 50.0}
    for s in (1, 2, 3, 4)
]
COMPRESS_LOG += [
    {"stage": "distil", "step": s, "total_step": 4 + s, "loss": 0.1, "l1": 0.1, "audio_seconds_per_second": 60.0}
    for s in (1, 2)
]
PRETRAIN_LOG = [
    {"stage": "front", "step": 5, "total_step": 5, "loss": 0.3},
    {"stage": "masked", "step": 5, "total_step": 10, "loss": 4.0, "accuracy": 0.2, "codebook_use": 0.9},
]
COMPRESS_FIGURES = [
    "Layer map",
    "Loss",
    "Parts of the distillation loss",
    "Kept fraction of the cost",
    "Multipliers of the budget",
    "Throughput, seconds of audio per second",
]


class Reading(HTMLParser):
    """What a page holds, by element: texts, cells by row, labels of its drawings, ids, addresses that it would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.rows, self.labels, self.ids, self.loads = [], {}, [], [], [], []
        self.scopes = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.labels += [values.get("aria-label")] if tag == "svg" else []
        self.scopes += [values.get("scope")] if tag == "th" else []
        self.rows += [[]] if tag == "tr" else []
        loading = ("src", "href", "xlink:href", "data", "srcset", "poster", "action")
        self.loads += [v for k, v in attributes if k in loading and not v.startswith("#")]
        self.loads += [v for v in re.findall(r"url\(([^)]*)\)", " ".join(filter(None, values.values()))) if v[0] != "#"]
        if tag in ("meta", "link"):
            self.open.pop()

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)
            if self.open[-1] in ("td", "th"):
                self.rows[-1].append(data)


def make_run(directory, identity=COMPRESS, lines=COMPRESS_LOG, result=RESULT):
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(identity))
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (directory / "result.json").write_text(json.dumps(result))
    return directory


def report(tmp_path, *runs, **options):
    return write_report(runs, tmp_path / "report.html", **options).read_text()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The report of one compression."""
    folder = tmp_path_factory.mktemp("one")
    return report(folder, make_run(folder / "small"))


def test_a_compression_has_its_figures_each_with_a_label(text):
    page = Reading(text)
    assert page.texts["figcaption"] == COMPRESS_FIGURES
    assert page.labels[1] == "small: Loss over 6 steps: loss minimised from 1 to 0.1, distillation from 0.5 to 0.5."
    assert "Attention heads: 3 / 4; removed." in page.labels[0]
    assert len(page.labels) == len(COMPRESS_FIGURES)
    assert page.texts["text"].count("distil") == 5


def test_curves_go_through_what_was_logged_and_mark_where_a_stage_ends():
    (axes,) = draw_curves(Curves("Loss", ("loss", "distillation")), COMPRESS_LOG).axes
    loss, distillation, boundary = axes.lines
    assert loss.get_xydata().tolist() == [[line["total_step"], line["loss"]] for line in COMPRESS_LOG]
    assert distillation.get_xydata().tolist() == [[step, 0.5] for step in (1, 2, 3, 4)]
    assert list(boundary.get_xdata()) == [4, 4]
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("joint", 0), ("distil", 4)]


def test_the_headline_and_the_configuration_are_tables(text):
    rows = Reading(text).rows
    assert ["Parameters", "94.4 M", "23.6 M", "25.0%"] in rows
    assert ["MACs per second of audio", "7.17 G", "2.00 G", "27.9%"] in rows
    assert ["Removal error", "3.2e-07"] in rows
    assert ["Expected kept before selection", "26.31%"] in rows
    assert ["Time taken", "2.0 h"] in rows
    assert ["keep", "params=0.5"] in rows


def test_a_page_loads_nothing(text):
    assert Reading(text).loads == []
    assert [bad for bad in ("@import", "<script", "/somewhere/private") if bad in text] == []


def test_every_reference_inside_a_page_has_its_target(text):
    references = set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', text))
    assert references
    assert references - set(Reading(text).ids) == set()


def test_every_colour_of_a_figure_follows_the_page(text):
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawn) == []


def test_a_page_is_the_same_whenever_it_is_written(tmp_path):
    run = make_run(tmp_path / "ssl", {"command": "pretrain"}, PRETRAIN_LOG, None)
    assert report(tmp_path, run) == report(tmp_path, run)


def test_a_pretraining_has_curves_for_every_stage_and_for_scalars_it_never_saw(tmp_path):
    identity = {"command": "pretrain", "model": {"width": 192}}
    page = Reading(report(tmp_path, make_run(tmp_path / "ssl", identity, PRETRAIN_LOG, {"seconds": 3.0})))
    assert page.rows[-1] == ["model.width", "192"]
    assert page.texts["figcaption"] == [
        "Loss, stage front",
        "Loss, stage masked",
        "Accuracy, stage masked",
        "Codebook use, stage masked",
    ]


def test_a_new_front_end_has_curves_of_its_own(tmp_path):
    log = [{"stage": front_end.NAME, "step": s, "total_step": s - 5, "loss": 1.5 / s} for s in (3, 5)] + COMPRESS_LOG
    page = Reading(report(tmp_path, make_run(tmp_path / "fbank", lines=log)))
    assert page.texts["figcaption"] == ["Layer map", "Loss, stage front_end", *COMPRESS_FIGURES[1:]]
    assert page.labels[1] == "fbank, stage front_end: Loss over 5 steps: loss minimised from 0.5 to 0.3."
    assert page.labels[2] == "fbank: Loss over 6 steps: loss minimised from 1 to 0.1, distillation from 0.5 to 0.5."


def test_several_runs_are_compared_under_names_that_tell_them_apart(tmp_path):
    first, second = make_run(tmp_path / "a" / "small"), make_run(tmp_path / "b" / "small")
    third = make_run(tmp_path / "ssl", {"command": "pretrain"}, PRETRAIN_LOG, None)
    fourth = make_run(tmp_path / "fixed", {"command": "distil"}, PRETRAIN_LOG, {"params": 2_450_000})
    page = Reading(report(tmp_path, first, second, third, fourth))
    assert page.texts["caption"][0] == "Comparison"
    compared = ["compress dphubert", "23.6 M", "25.0%", "2.00 G", "27.9%", "3.2e-07", "0.1", "2.0 h"]
    assert page.rows[1:5] == [
        [str(first), *compared],
        [str(second), *compared],
        ["ssl", "pretrain", "-", "-", "-", "-", "-", "-", "not finished"],  # its loss is another
        ["fixed", "distil", "2.45 M", "-", "-", "-", "-", "-", "-"],
    ]
    assert ["Parameters", "2,450,000"] in page.rows
    assert page.texts["h2"] == [str(first), str(second), "ssl", "fixed"]
    assert sorted(set(page.ids)) == sorted(page.ids)


def test_only_a_distillation_has_a_distillation_loss(tmp_path):
    losses = {}
    for objective in ("distillation", "masked_prediction"):
        pruned = make_run(tmp_path / objective, COMPRESS | {"config": {"objective": objective}})
        rows = Reading(report(tmp_path, pruned, make_run(tmp_path / f"{objective}-beside"))).rows
        head = next(row for row in rows if "Distillation loss" in row)
        losses[objective] = next(row for row in rows if objective in row)[head.index("Distillation loss")]
    assert losses == {"distillation": "0.1", "masked_prediction": "-"}


def test_an_interval_is_shown_beside_its_value(tmp_path):
    rows = [("teacher", (0.6634, 0.612, 0.71), 1234), ("words", (12.71, 11.0, 14.2), 0.12345)]
    page = Reading(report(tmp_path, tables=[Table("Probe", ("Model", "Accuracy", "Clips"), rows, note="95 %")]))
    assert page.rows == [
        ["Model", "Accuracy", "Clips"],
        ["teacher", "0.663 [0.612, 0.710]", "1,234"],
        ["words", "12.7 [11.0, 14.2]", "0.1235"],
    ]
    assert page.scopes == ["col", "col", "col", "row", "row"]


def test_markup_in_names_is_shown_not_obeyed(tmp_path):
    evil = '<script>alert("1")</script>'
    identity = {**COMPRESS, "model": evil, "config": {evil: evil}}
    run = make_run(tmp_path / "<b>'&", identity, [{"stage": evil, "step": 1, "total_step": 1, evil: 1.0}], None)
    text = report(tmp_path, run, tables=[Table(evil, (evil,), [(evil,)], note=evil)], title=evil)
    assert "<script" not in text
    assert "<b>" not in text
    assert [evil, evil] in Reading(text).rows


def test_a_table_whose_rows_do_not_fit_its_columns_is_refused():
    with pytest.raises(ValueError, match="expected 2 cells a row"):
        Table("Probe", ("Model", "Accuracy"), [("teacher",)])


def test_an_unfinished_run_is_reported_as_far_as_it_came(tmp_path):
    page = Reading(report(tmp_path, make_run(tmp_path / "small", lines=COMPRESS_LOG[:3], result=None)))
    (state,) = (text for text in page.texts["p"] if "not finished" in text)
    assert state.startswith("not finished: last logged was stage joint, step 3")
    assert page.texts["figcaption"] == COMPRESS_FIGURES[1:]


def test_a_broken_last_line_is_left_out_and_said(tmp_path, caplog):
    run = make_run(tmp_path / "small", lines=COMPRESS_LOG[:3], result=None)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"stage": "dist')
    label = Reading(report(tmp_path, run)).labels[0]
    assert label == "small: Loss over 3 steps: loss minimised from 1 to 0.3333, distillation from 0.5 to 0.5."
    assert "the last line is broken" in caplog.text


def test_a_broken_line_before_the_last_is_named(tmp_path):
    run = make_run(tmp_path / "small")
    log = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([log[0], log[1][:20], *log[2:]]))
    with pytest.raises(UserError, match=r"log\.jsonl, line 2: not JSON"):
        report(tmp_path, run)


@pytest.mark.parametrize("text", ["", '{"stage": "jo'])
def test_a_run_that_logged_nothing_is_refused(tmp_path, text):
    run = make_run(tmp_path / "small")
    (run / "log.jsonl").write_text(text)
    with pytest.raises(UserError, match="has logged nothing yet"):
        report(tmp_path, run)


def test_a_directory_that_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    good = make_run(tmp_path / "small")
    with pytest.raises(UserError, match=r"holds no run \(no run\.json\)"):
        report(tmp_path, good, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_a_report_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        report(tmp_path)


def test_a_directory_is_no_place_for_a_report(tmp_path):
    with pytest.raises(UserError, match=r"is a directory; expected a file"):
        write_report([make_run(tmp_path / "small")], tmp_path)


def test_a_report_leaves_no_other_file_and_makes_the_folders_it_needs(tmp_path):
    run = make_run(tmp_path / "ssl", {"command": "pretrain"}, PRETRAIN_LOG, None)
    out = write_report([run], tmp_path / "a" / "b" / "report.html")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
