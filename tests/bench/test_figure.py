"""The figure: what each slot shows, what cannot stand in it, and labels that do not overlap."""

import dataclasses
import itertools

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pip install 'edge-awq[plot]'")
from made_results import AGX, CPU, H200, stored
from made_runs import make_run
from matplotlib.colors import to_hex, to_rgb

from edge_awq.bench.curves import context_curves
from edge_awq.bench.panels import make_panels
from edge_awq.bench.plots import COLORS, LINES, PHASES, draw_context, draw_figure, draw_power, plotting
from edge_awq.bench.runs import read_run
from edge_awq.bench.tables import FIGURE_HEAD, figure_rows
from edge_awq.errors import EdgeAwqError
from edge_awq.plan.figure import read_figure

FULL = [stored(**AGX), stored(**AGX, precision="fp16", tok_s_median=11.8, tok_s_mad=0.1),
        stored(**AGX, engine="transformers", precision="fp16", tok_s_median=10.6, tok_s_mad=0.3),
        stored(**AGX, model="mpt-30b", engine="transformers", precision="fp16", oom=True),
        stored(**AGX, power_mode="MODE_30W", tok_s_median=20.0), stored(**H200, tok_s_median=880.0),
        stored(**CPU, model="tinyllama-1.1b", tok_s_median=21.0),
        stored(**AGX, protocol="realistic", prompt_tokens=2048)]


@pytest.fixture
def pyplot():
    yield plotting()
    plotting().close("all")


def slots(panels):
    return {(panel.title, model, slot.bar): slot for panel in panels
            for model, group in panel.groups.items() for slot in group}


def test_without_results_it_is_the_paper_with_limits_and_predictions():
    panels = make_panels([])
    assert [panel.title.partition(",")[0] for panel in panels] == ["RTX 4090", "Jetson AGX Orin", "RTX 4070 laptop"]
    found = [slot.paper for slot in slots(panels).values()]
    assert found == list(read_figure())
    assert not any(slot.measured for slot in slots(panels).values())
    orin = slots(panels)["Jetson AGX Orin, 204.8 GB/s, power mode MAXN", "Falcon-7B", "awq_w4a16"]
    assert orin.predicted_tok_s == pytest.approx(0.8 * orin.limit_tok_s)


def test_measured_and_predicted_never_share_a_slot():
    found = slots(make_panels(FULL))
    assert sum(slot.measured is not None for slot in found.values()) == 7
    assert not any(slot.measured and slot.predicted_tok_s for slot in found.values())
    assert not any(slot.predicted_tok_s for (_, _, bar), slot in found.items() if bar == "hf_fp16")


def test_every_measured_device_and_mode_has_a_panel():
    titles = [panel.title for panel in make_panels(FULL)]
    assert titles[3:] == ["Jetson AGX Orin 64GB, 204.8 GB/s, power mode MODE_30W", "H200, 4800 GB/s", "laptop"]


def test_another_form_of_our_engine_is_no_bar_and_can_stand_beside_the_usual_one():
    bytes_cached = stored(**AGX, variant="kv-bits 8", tok_s_median=41.0)
    panels = make_panels([*FULL, bytes_cached])
    assert 41.0 not in [slot.measured.tok_s_median for slot in slots(panels).values() if slot.measured]
    assert bytes_cached.result.form == "w4a16, kv-bits 8"


def test_invalid_results_are_left_out():
    disturbed = stored(**AGX, valid=False, invalid_reasons=("it throttled",))
    assert not any(slot.measured for slot in slots(make_panels([disturbed])).values())


def test_a_checkpoint_stands_with_its_shape():
    checkpoint = stored(**AGX, model="meta-llama/Llama-2-7b-hf", shape="llama-2-7b")
    panel = make_panels([checkpoint])[1]
    assert panel.groups["Llama-2-7B"][2].measured is checkpoint.result


def test_unknown_models_have_no_limit():
    found = slots(make_panels([stored(**H200, model="org/my-model")]))
    slot = found["H200, 4800 GB/s", "org/my-model", "awq_w4a16"]
    assert (slot.limit_tok_s, slot.measured.tok_s_median) == (None, 40.0)


@pytest.mark.parametrize(("results", "words"), [
    ([stored(**AGX, generated_tokens=64)], ["4 + 64", "4 + 200"]),
    ([stored(**AGX), stored(**AGX, file="b.json")], ["a.json and b.json", "cannot be one bar"]),
    ([stored(**AGX), stored(**{**AGX, "profile": "jetson-agx-orin-32gb"}, file="b.json")], ["limits differ", "32gb"]),
], ids=["protocol", "twice", "profiles"])
def test_what_cannot_be_compared(results, words):
    with pytest.raises(EdgeAwqError) as caught:
        make_panels(results)
    assert all(word in caught.value.message for word in words) and caught.value.hint


@pytest.mark.parametrize("results", [[], FULL], ids=["paper", "measured"])
def test_labels_do_not_overlap(pyplot, results):
    figure = draw_figure(make_panels(results))
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [(text.get_text(), text.get_window_extent()) for text in axis.texts]
        for (first, one), (second, other) in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), (axis.get_title(loc="left"), first, second)
        assert all(box.y1 <= axis.bbox.y1 + 1 for _, box in boxes)


def test_bars_are_as_high_as_what_they_show(pyplot):
    figure = draw_figure(make_panels(FULL))
    filled = [patch.get_height() for patch in figure.axes[1].patches if to_hex(patch.get_facecolor()) != "#ffffff"
              and patch.get_facecolor()[3] > 0]
    assert filled == [10.6, 11.8, 40.0]
    hatched = [patch for axis in figure.axes for patch in axis.patches if patch.get_hatch()]
    assert hatched and all(to_hex(patch.get_facecolor()) == "#ffffff" for patch in hatched)


# Linear sRGB as people without one kind of cone see it: Machado, Oliveira and Fernandes 2009, severity 1.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, vision):
    """CIE L*a*b* under D65."""
    code = np.array(to_rgb(color))
    linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(vision) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize(("colors", "apart"), [(COLORS.values(), 25), (PHASES.values(), 10), (LINES, 15)],
                         ids=["bars", "phases", "lines"])
def test_colours_stay_apart_for_every_kind_of_colour_vision(colors, apart, vision):
    """In CIE76, where about 2.3 is just seen. Phases stand beside one another in order, lines have markers too."""
    for one, other in itertools.combinations(colors, 2):
        assert np.linalg.norm(lab(one, VISIONS[vision]) - lab(other, VISIONS[vision])) > apart, (one, other)


def test_out_of_memory_is_marked_and_the_papers_is_told_from_ours(pyplot):
    axis = draw_figure(make_panels(FULL)).axes[1]
    marks = [(round(text.get_position()[0]), text.get_weight()) for text in axis.texts if text.get_text() == "OOM"]
    assert marks == [(1, "normal"), (1, "normal"), (3, "bold"), (3, "normal")]  # Llama-2-13B, MPT-30B


def test_a_rail_that_is_the_total_is_drawn_once(pyplot, tmp_path):
    run = read_run(make_run(tmp_path))
    labels = [line.get_label() for line in draw_power(run).axes[0].lines]
    assert labels == ["total (module)"]
    other = dataclasses.replace(run, rails_w={**run.rails_w, "VDD_SOC": (1.0, None, 2.0)})
    assert [line.get_label() for line in draw_power(other).axes[0].lines] == ["total (module)", "VDD_SOC"]


def test_rows_keep_measured_and_predicted_apart():
    rows = [dict(zip(FIGURE_HEAD, row, strict=True)) for row in figure_rows(make_panels(FULL))]
    assert not [row for row in rows if row["measured tok/s"] and row["predicted tok/s"]]
    (mine,) = [row for row in rows if row["measured tok/s"] == "40" and row["model"] == "Llama-2-7B"]
    assert (mine["AWQ paper tok/s"], mine["paper's share of limit"], mine["predicted tok/s"]) == ("39", "70 %", "")
    assert next(row for row in rows if row["measured tok/s"] == "OOM")["model"] == "MPT-30B"


def test_context_lines(pyplot):
    measured = context_curves(FULL)
    assert [(curve.kind, [point[0] for point in curve.points]) for curve in measured] == [("measured", [104, 2148])]
    predicted = context_curves([])
    assert {curve.kind for curve in predicted} == {"predicted", "limit"} and len(predicted) == 6
    assert len(draw_context(predicted).axes[0].lines) == 6
