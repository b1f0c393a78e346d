"""The figures are pure functions: what is drawn, with which colours, shapes and labels."""

import numpy as np
import plotly.graph_objects as go
import pytest

from core.answers.diagnosis import Diagnosis, Neighbour
from core.stats.curves import Coverage
from pages._charts import cases as charts
from pages._charts import evaluate as charts_evaluate

CLASSES = ("normal", "disease")


def make_neighbour(rank: int, index: int, label: int) -> Neighbour:
    return Neighbour(rank, index, f"key{index}", label, CLASSES[label], 0.5, 2.0, 0.5)


def make_diagnosis(*indices: int, labels: np.ndarray, p: float = 0.87) -> Diagnosis:
    return Diagnosis(
        file="a.png",
        status="answered",
        model_id="m",
        data_id="d",
        created="2026-01-01T00:00:00+00:00",
        disease_class="disease",
        predicted_class="disease",
        probabilities={"normal": 1 - p, "disease": p},
        neighbours=tuple(
            make_neighbour(rank, i, int(labels[i])) for rank, i in enumerate(indices, 1)
        ),
        map_xy=(0.25, -0.5),
    )


def draw_map(n: int, *indices: int, **options: object) -> tuple[go.Figure, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    xy = rng.normal(size=(n, 2)).astype(np.float32)
    keys = [f"key{i}" for i in range(n)]
    diagnosis = make_diagnosis(*indices, labels=labels)
    return charts.build_map(diagnosis, xy, labels, keys, CLASSES, **options), xy


def points(figure: go.Figure) -> set[int]:
    return {
        row for trace in figure.data if trace.customdata is not None for row in trace.customdata
    }


def test_the_bar_never_says_a_false_certainty() -> None:
    sure = make_diagnosis(labels=np.zeros(0, np.int64), p=1 - 4e-5)
    said = [bar.hovertemplate for bar in charts.build_probability_bar(sure, CLASSES).data]
    assert said == ["normal &lt;1 %<extra></extra>", "disease &gt;99 %<extra></extra>"]


def test_the_map_draws_every_image_once_and_never_as_webgl() -> None:
    figure, _ = draw_map(10, 1, 4)
    drawn = [k for t in figure.data if t.customdata is not None for k in t.customdata]
    assert sorted(drawn) == list(range(10))
    shown = {row: t.text[i] for t in figure.data for i, row in enumerate(t.customdata or ())}
    assert shown[7] == "key7"
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert not figure.layout.images


def test_lines_lead_from_the_star_to_the_neighbours() -> None:
    figure, xy = draw_map(10, 1, 4)
    lines = next(t for t in figure.data if t.mode == "lines")
    star = next(t for t in figure.data if t.marker.symbol == "star")
    assert (star.x[0], star.y[0]) == (0.25, -0.5)
    assert list(lines.x) == [
        0.25,
        pytest.approx(xy[1, 0]),
        None,
        0.25,
        pytest.approx(xy[4, 0]),
        None,
    ]
    assert list(lines.y) == [
        -0.5,
        pytest.approx(xy[1, 1]),
        None,
        -0.5,
        pytest.approx(xy[4, 1]),
        None,
    ]


def test_a_large_gallery_is_sampled_the_same_way_each_time_with_the_voters() -> None:
    n = charts.MAX_MAP_POINTS * 2
    voters = (7, n - 1)
    first, second = (draw_map(n, *voters)[0] for _ in range(2))
    assert points(first) == points(second)
    assert len(points(first)) == charts.MAX_MAP_POINTS
    assert set(voters) <= points(first)


def test_classes_differ_in_colour_and_shape_and_disease_is_not_green() -> None:
    figure, _ = draw_map(10, 1)
    shown = {t.name: t.marker for t in figure.data if t.showlegend and t.customdata is not None}
    assert shown["normal"].color != shown["disease"].color
    assert shown["normal"].symbol != shown["disease"].symbol
    red, green, blue = (int(charts.DISEASE_COLOUR[i : i + 2], 16) for i in (1, 3, 5))
    assert red > green > blue


def test_colours_follow_the_disease_class_and_not_the_order() -> None:
    for order in (CLASSES, CLASSES[::-1]):
        assert charts.class_colour("disease", order, "disease") == charts.DISEASE_COLOUR
        assert charts.class_symbol("normal", order, "disease") == "circle"


def test_words_are_translated_and_keys_cannot_be_markup() -> None:
    labels = np.array([0, 1])
    figure = charts.build_map(
        make_diagnosis(1, labels=labels),
        np.zeros((2, 2), np.float32),
        labels,
        ["<b>x</b>", "y"],
        CLASSES,
        translate=lambda text: f"[{text}]",
        label=str.upper,
    )
    names = {trace.name for trace in figure.data}
    assert {"[this image]", "[line to an image that voted]", "NORMAL", "DISEASE"} <= names
    shown = [text for trace in figure.data for text in trace.text or ()]
    assert sorted(shown) == ["&lt;b&gt;x&lt;/b&gt;", "y"]


def test_without_a_place_there_is_no_star_and_no_line() -> None:
    labels = np.array([0, 1])
    diagnosis = Diagnosis("a", "answered", "m", "d", "", "disease")
    figure = charts.build_map(diagnosis, np.zeros((2, 2), np.float32), labels, ["x", "y"], CLASSES)
    assert all(trace.mode == "markers" and trace.marker.symbol != "star" for trace in figure.data)


def test_the_bar_is_the_probabilities_with_disease_on_the_right() -> None:
    diagnosis = make_diagnosis(1, labels=np.array([0, 1]), p=0.87)
    figure = charts.build_probability_bar(diagnosis, CLASSES[::-1], label=str.title)
    assert [bar.name for bar in figure.data] == ["Normal", "Disease"]
    assert [bar.x[0] for bar in figure.data] == pytest.approx([0.13, 0.87])
    assert figure.data[1].marker.pattern.shape == "/"  # not by colour alone
    assert figure.data[1].marker.pattern.fillmode == "overlay"  # otherwise the colour is lost
    assert figure.layout.shapes[0].x0 == 0.5


def test_clicked_points_lead_back_to_their_rows() -> None:
    clicked = [{"customdata": 4, "x": 0.0}, {"x": 1.0}, {"customdata": [9]}]
    assert charts.list_rows(clicked) == [4, 9]
    assert charts.list_rows([]) == []


def test_the_coverage_curve_marks_the_setting_only_where_it_answers_something() -> None:
    rows = [Coverage(0.0, 1.0, 10, 0.8), Coverage(0.1, 0.4, 4, 0.9), Coverage(0.2, 0.0, 0, None)]
    stars = {
        margin: [t.x for t in charts_evaluate.build_coverage(rows, margin).data][1:]
        for margin in (0.1, 0.2)
    }
    assert stars == {0.1: [(0.4,)], 0.2: []}
