"""The layer map: what is drawn is what was kept."""

import pytest
from two_layers import FULL, SHAPE

from diminuendo.report import layer_map


@pytest.fixture(scope="module")
def figure():
    return layer_map(SHAPE, FULL)


def bars(figure):
    """Kept bars of a map by axis."""
    found = {}
    for axes in figure.axes:
        for patch in axes.patches:
            if patch.get_gid():
                found.setdefault(patch.get_gid(), []).append((patch.get_x(), patch.get_width()))
    return found


def texts(figure, title):
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return [text.get_text() for text in axes.texts]


def test_every_bar_of_the_map_is_as_long_as_what_was_kept(figure):
    drawn = bars(figure)
    assert {name: [width for _, width in pieces] for name, pieces in drawn.items() if "groups" not in name} == {
        "front.0.channels": [16],
        "front.1.channels": [7],
        "encoder.layers.0.attention.heads": [3],
        "encoder.layers.0.feed_forward.neurons": [1001],
        "encoder.layers.1.feed_forward.neurons": [0],
    }
    assert [left for left, _ in drawn["encoder.position.groups"]] == [0, 3]


def test_the_map_says_the_numbers_and_names_a_removed_sublayer(figure):
    assert texts(figure, "Convolution channels") == ["16 / 16", "7 / 16"]
    assert texts(figure, "Positional groups") == ["2 / 4"]
    assert texts(figure, "Attention heads") == ["3 / 4", "removed"]
    assert texts(figure, "Feed-forward neurons") == ["1,001 / 4,096", "0 / 4,096"]


def test_the_width_is_one_bar_though_the_shape_has_its_members():
    figure = layer_map({"a.0.channels": 3, "width": [0, 2, 5]}, {"a.0.channels": 4, "width": 8})
    assert bars(figure)["width"] == [(0, 3)]
    assert texts(figure, "Width of the residual stream") == ["3 / 8"]


def test_a_removed_sublayer_has_no_bar_at_all(figure):
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "Attention heads")
    assert [round(patch.get_y() + patch.get_height() / 2) for patch in axes.patches] == [0, 0]


def test_the_map_of_a_model_compressed_twice_names_what_the_first_time_removed():
    full = {name: size for name, size in FULL.items() if not name.startswith("encoder.layers.1.attention")}
    assert texts(layer_map(SHAPE, full), "Attention heads") == ["3 / 4", "gone before"]


def test_the_map_takes_the_axes_of_any_family_in_the_order_of_the_layers():
    full = {f"blocks.{layer}.gated_conv": 1 for layer in (0, 10, 2)}
    assert texts(layer_map({**full, "blocks.2.gated_conv": 0}, full), "Gated conv") == ["1 / 1", "0 / 1", "1 / 1"]


@pytest.mark.parametrize(("layers", "heads", "neurons"), [(12, 12, 3072), (24, 16, 4096)])
def test_nothing_overlaps_in_the_map_of_a_published_model(layers, heads, neurons):
    full = {f"front.{i}.channels": 512 for i in range(7)}
    for i in range(layers):
        full |= {f"layers.{i}.attention.heads": heads, f"layers.{i}.feed_forward.neurons": neurons}
    figure = layer_map(full, full)
    figure.draw_without_rendering()
    boxes = [
        text.get_window_extent()
        for axes in figure.axes
        for text in [*axes.texts, *axes.get_yticklabels(), axes.title]
        if text.get_text()
    ]
    bars = [patch.get_window_extent() for axes in figure.axes for patch in axes.patches]
    assert [(a, b) for a in boxes for b in bars if a.overlaps(b)] == []
    assert [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)] == []
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
