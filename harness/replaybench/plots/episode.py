"""The images of one logged episode, as what the policy saw."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replaybench.episode import Episode
from replaybench.errors import ConfigError

COLUMNS = 8
INCHES = 1.5
# Of the title's font.
LETTERS_PER_INCH = 13


def contact_sheet(episode: Episode, title: str) -> Figure:
    """Returns a figure with every image of an episode in the order of its decisions, one row of a block a camera.

    Raises:
        ConfigError: The episode's observations are no images.
    """
    images = episode.observations
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ConfigError(
            f"Episode '{episode.episode_id}' holds observations of shape {images.shape[1:]} and type {images.dtype}, "
            "no images [H, W, 3 per camera]. Choose a data set from pixels."
        )
    cameras = images.shape[-1] // 3
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns) * cameras
    width = INCHES * columns
    lines = textwrap.wrap(title, int(LETTERS_PER_INCH * width))
    figure = Figure(figsize=(width, (INCHES + 0.2) * rows + 0.2 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=9)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for step, image in enumerate(images):
        for camera in range(cameras):
            panel = axes[step // columns * cameras + camera, step % columns]
            panel.imshow(image[..., 3 * camera : 3 * camera + 3])
            if camera == 0:
                _name(panel, episode, step)
    return figure


def _name(panel: Axes, episode: Episode, step: int) -> None:
    """Writes above an image when it was seen, and what the decision before it earned."""
    words = f"{step}"
    if step > 0 and episode.reward[step - 1] != 0:
        words += f"  reward {episode.reward[step - 1]:+.2g}"
    if step == episode.num_steps:
        words += "  success" if episode.success else "  end"
    panel.set_title(words, fontsize=8)
