import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from keras_capsvit import plot

rng = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_draws_every_image_and_map_on_one_scale(tmp_path, channels):
    images, maps = rng.uniform(size=(5, 8, 9, channels)), rng.uniform(size=(5, 8, 9))
    figure = plot.grid(images, maps, titles=list("abcde"), columns=3)
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(drawn) == 10
    assert [ax.get_title() for ax in drawn if ax.get_title()] == list("abcde")
    overlays = [ax.images[1] for ax in drawn if len(ax.images) == 2]
    assert {overlay.get_clim() for overlay in overlays} == {(maps.min(), maps.max())}
    np.testing.assert_array_equal(overlays[0].get_array(), maps[0])
    figure.savefig(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 5000


def overlays_of(figure):
    return [ax.images[1] for ax in figure.axes if len(ax.images) == 2]


def test_signed_maps_have_white_at_zero():
    random = np.random.default_rng(0)
    image, heatmap = random.uniform(size=(6, 7)), random.uniform(-1, 3, size=(6, 7))
    heatmap[0, 0] = 0
    drawn = plot.overlay(image, heatmap)
    largest = np.abs(heatmap).max()
    assert drawn.get_clim() == (-largest, largest)
    np.testing.assert_allclose(drawn.cmap(drawn.norm(0.0))[:3], 1, atol=0.02)
    assert plot.overlay(image, np.abs(heatmap)).cmap.name == "jet"
    assert plot.overlay(image, heatmap, vmin=0, vmax=1).get_clim() == (0, 1)
    assert plot.overlay(image, heatmap, cmap="gray").cmap.name == "gray"
    images = random.uniform(size=(2, 6, 7, 3))
    for overlay in overlays_of(plot.grid(images, np.stack([heatmap, np.abs(heatmap)]))):
        assert overlay.get_clim() == (-largest, largest)
        assert overlay.cmap.name == "seismic"


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_constant_maps_have_the_colour_of_little_relevance(tmp_path, value):
    images, maps = np.random.default_rng(0).uniform(size=(2, 6, 7, 3)), np.full((2, 6, 7), value)
    least = plot.overlay(images[0], np.arange(42.0).reshape(6, 7))
    dark_blue = least.cmap(least.norm(0.0))
    for overlay in [plot.overlay(images[0], maps[0]), *overlays_of(plot.grid(images, maps))]:
        assert overlay.cmap(overlay.norm(value)) == dark_blue
        assert overlay.get_clim()[0] == value
    heatmap = np.random.default_rng(1).uniform(size=(6, 7))
    figure = plot.comparison(images, {"constant": maps, "one constant": np.stack([maps[0], heatmap])})
    constant, mixed = np.array(overlays_of(figure)).reshape(2, 2).T
    for overlay in (*constant, mixed[0]):
        np.testing.assert_array_equal(overlay.get_array(), 0)
    assert mixed[1].get_array().max() == 1
    figure.savefig(tmp_path / "constant.png")


def test_overlay_on_a_new_figure_and_titles():
    drawn = plot.overlay(np.zeros((4, 5)), np.ones((4, 5)))
    assert len(drawn.figure.axes[0].images) == 2
    assert plot.titles_of([[0.1, 0.91], [0.5, 0.2]], ["cat", "dog"]) == ["dog\n0.91", "cat\n0.50"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims, names", [(None, ["dim 0", "dim 1"]), ([5, 3], ["dim 5", "dim 3"])])
def test_sweep_draws_a_row_per_dimension_and_a_column_per_offset(tmp_path, channels, dims, names):
    images = rng.uniform(size=(2, 3, 8, 9, channels))
    figure = plot.sweep(images, [-0.25, 0, 0.25], dims)
    axes = np.array(figure.axes).reshape(2, 3)
    for row, column in np.ndindex(2, 3):
        np.testing.assert_array_equal(axes[row, column].images[0].get_array(), images[row, column].squeeze())
        assert axes[row, column].images[0].get_clim() == (0, 1)
    assert [ax.get_title() for ax in axes[0]] == ["-0.25", "+0.00", "+0.25"]
    assert [ax.texts[0].get_text() for ax in axes[:, 0]] == names
    figure.savefig(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 2000


def test_says_what_is_wrong():
    images = np.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match=r"heat map of shape \(4, 4\); received \(3, 4\)"):
        plot.overlay(images[0], np.zeros((3, 4)))
    with pytest.raises(ValueError, match="finite heat map"):
        plot.overlay(images[0], np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="for each of 2 images; received"):
        plot.grid(images, np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="not empty; received"):
        plot.grid(images[:0], np.zeros((0, 4, 4)))
    for swept, offsets, dims, received in [
        (images, [0, 1], None, r"received shape \(2, 4, 4, 1\) with 2 dimensions and 2 offsets"),
        (images[None], [0], None, "1 dimensions and 1 offsets"),
        (images[None], [0, 1], [1, 2], "2 dimensions and 2 offsets"),
        (images[None, :, :0], [0, 1], None, r"at least 1; received shape \(1, 2, 0, 4, 1\)"),
    ]:
        with pytest.raises(ValueError, match=received):
            plot.sweep(swept, offsets, dims)


@pytest.mark.parametrize("channels", [1, 3])
def test_adversarial_shows_what_attacks_made_and_changed(tmp_path, channels):
    images = rng.uniform(0.2, 0.8, size=(3, 6, 7, channels))
    result = {"PGD": images + 0.1, "FGSM": images - 0.2}
    figure = plot.adversarial(images, result, titles={"clean": list("abc"), "PGD": list("def")})
    drawn = [ax for ax in figure.axes if ax.images]
    assert len(drawn) == 15  # and a colour bar
    axes = np.array(drawn).reshape(5, 3)
    assert [ax.get_title() for ax in axes[:2].flat] == list("abcdef")
    assert [ax.texts[0].get_text() for ax in axes[:, 0]] == ["clean", "PGD", "change", "FGSM", "change"]
    np.testing.assert_allclose(axes[2, 1].images[0].get_array(), 0.1, atol=1e-6)
    np.testing.assert_allclose(axes[4, 1].images[0].get_array(), -0.2, atol=1e-6)
    for ax in axes[2::2].flat:
        assert ax.images[0].get_clim() == pytest.approx((-0.2, 0.2))
    figure.savefig(tmp_path / "adversarial.png")
    plot.adversarial(images, {"nothing": images})
    for wrong in ({}, {"PGD": images[:2]}):
        with pytest.raises(ValueError, match=r"and adversarial ones of the same; received \(3, 6, 7,"):
            plot.adversarial(images, wrong)
    with pytest.raises(ValueError, match=r"Expected a list of 3 titles, one for each image; received \['a'\]"):
        plot.adversarial(images, result, titles={"PGD": ["a"]})


def test_rows_of_images(tmp_path):
    images = {"clean": rng.uniform(size=(2, 5, 5, 3)), "decoded": rng.uniform(size=(2, 5, 5, 3))}
    figure = plot.rows(images, titles={"clean": ["a", "b"]})
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "", ""]
    np.testing.assert_array_equal(figure.axes[3].images[0].get_array(), images["decoded"][1])
    figure.savefig(tmp_path / "rows.png")
    for wrong in ({}, {"a": images["clean"], "b": images["clean"][:1]}):
        with pytest.raises(ValueError, match="Expected images of one shape"):
            plot.rows(wrong)
    with pytest.raises(ValueError, match=r"Expected images of shape .*, not empty; received \(0, 5, 5, 3\)"):
        plot.rows({"a": images["clean"][:0]})
    with pytest.raises(ValueError, match=r"Pixels must lie within the bounds \[0, 1\]; received values in .*Scale the"):
        plot.rows({"a": 255 * images["clean"]})
    with pytest.raises(ValueError, match="Expected a list of 2 titles, one for each image"):
        plot.rows(images, titles={"clean": ["a"]})


def test_vote_histograms_bin_by_cosine(tmp_path):
    cosine = np.array([[[-0.9, -0.9, 0.9, 0.7]], [[0.1, 0.1, 0.1, 1.0]]])
    statistics = {"cosine": cosine, "length": 2 + cosine, "coupling": (1 + cosine) / 4}
    figure = plot.vote_histograms({"clean": statistics, "votes": statistics}, bins=4)
    bars = figure.axes[0].containers[0]
    assert [bar.get_height() for bar in bars] == [50, 0, 0, 50]
    length, coupling = figure.axes[4].lines
    np.testing.assert_allclose(length.get_ydata(), [1.1, np.nan, np.nan, 2.8])
    np.testing.assert_allclose(coupling.get_ydata(), [0.025, np.nan, np.nan, 0.45])
    titles = [ax.get_title() for ax in figure.axes[:4]]
    assert titles[:2] == ["clean, true class", "votes, true class"]
    assert titles[2] == "clean, longest other class"
    figure.savefig(tmp_path / "votes.png")
    with pytest.raises(ValueError, match="at least one set"):
        plot.vote_histograms({})


@pytest.mark.samples(2)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_comparison_draws_images_times_explainers_on_a_fixed_scale(tmp_path, channels, signed):
    images = rng.uniform(size=(2, 20, 21, channels))
    maps = {
        "large": 1000 * rng.uniform(size=(2, 20, 21)),
        "small": rng.uniform(size=(2, 20, 21)) - (0.5 if signed else 0),
    }
    maps["spike"] = np.zeros((2, 20, 21))
    maps["spike"][0, 3, 3] = 5
    figure = plot.comparison(images, maps, titles=["cat", "a dog with a very long name"])
    axes = np.array([ax for ax in figure.axes if ax.images]).reshape(2, 4)
    assert [ax.get_title() for ax in axes[0]] == ["cat", *maps]
    assert [ax.get_title() for ax in axes[1]] == ["a dog with a very\nlong name", "", "", ""]
    overlays = np.array([ax.images[1] for ax in axes[:, 1:].flat]).reshape(2, 3)
    scales = [((overlay.get_clim()), overlay.cmap.name) for overlay in overlays[0]]
    assert scales == [((0, 1), "jet"), ((-1, 1), "seismic") if signed else ((0, 1), "jet"), ((0, 1), "jet")]
    assert scales == [((overlay.get_clim()), overlay.cmap.name) for overlay in overlays[1]]
    bars = [ax for ax in figure.axes if not ax.images]
    assert [ax.get_ylim() for ax in bars] == ([(0, 1), (-1, 1)] if signed else [(0, 1)])
    for row, column in np.ndindex(2, 2):
        heatmap = list(maps.values())[column][row]
        expected = (heatmap / np.quantile(np.abs(heatmap), 0.995)).clip(-1, 1)
        np.testing.assert_allclose(overlays[row, column].get_array(), expected)
    np.testing.assert_array_equal(overlays[0, 2].get_array(), maps["spike"][0] / 5)
    np.testing.assert_array_equal(overlays[1, 2].get_array(), 0)
    figure.savefig(tmp_path / "comparison.png")
    assert not overlapping(figure)


def overlapping(figure):
    """Pairs of texts of a drawn figure that overlap."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = (
        [ax.title for ax in figure.axes] + [ax.yaxis.label for ax in figure.axes] + figure.axes[-1].get_yticklabels()
    )
    texts = [text for text in shown if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    pairs = itertools.combinations(zip(texts, boxes, strict=True), 2)
    return [(a.get_text(), b.get_text()) for (a, box_a), (b, box_b) in pairs if box_a.overlaps(box_b)]


def test_comparison_says_what_is_wrong():
    images, maps = np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4))
    for wrong, message in [
        ({}, "Expected the maps of at least one explainer; received none"),
        ({"a": maps[:1]}, r"Expected a map of shape \(4, 4\) for each of 2 images; received \(1, 4, 4\)"),
        ({"a": maps, "b": maps[..., None]}, r"Expected maps of shape \(b, H, W\), not empty; received \(2, 4, 4, 1\)"),
        ([maps], "maps must be a dict from names to maps; received a list of 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            plot.comparison(images, wrong)
    with pytest.raises(ValueError, match="Expected a list of 2 titles"):
        plot.comparison(images, {"a": maps}, titles=["one"])
    with pytest.raises(ValueError, match="Expected finite maps; received NaN or infinite values, 32 of 32"):
        plot.comparison(images, {"a": maps + np.nan})
