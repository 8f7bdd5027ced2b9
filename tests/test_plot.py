import numpy as np
import pytest

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
    with pytest.raises(ValueError, match="2 images, 1 maps"):
        plot.grid(images, np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="0 images"):
        plot.grid(images[:0], np.zeros((0, 4, 4)))
    for swept, offsets, dims, received in [
        (images, [0, 1], None, r"received shape \(2, 4, 4, 1\) with 2 dimensions and 2 offsets"),
        (images[None], [0], None, "1 dimensions and 1 offsets"),
        (images[None], [0, 1], [1, 2], "2 dimensions and 2 offsets"),
        (images[None, :, :0], [0, 1], None, r"at least 1; received shape \(1, 2, 0, 4, 1\)"),
    ]:
        with pytest.raises(ValueError, match=received):
            plot.sweep(swept, offsets, dims)
