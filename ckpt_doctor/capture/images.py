"""A folder of PNG and JPEG images as samples of one input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ckpt_doctor.capture.program import ModelInput
from ckpt_doctor.capture.runtime import reason, tensorflow
from ckpt_doctor.capture.samples import Samples, permutation
from ckpt_doctor.checkpoint import Array, numpy_dtype
from ckpt_doctor.errors import BadRequest
from ckpt_doctor.options import DataOptions

_ENDINGS = (".png", ".jpg", ".jpeg")


def image_samples(
    folder: Path,
    entry: ModelInput,
    options: DataOptions,
    *,
    limit: int | None,
    seed: int | None,
    option: str = "--data",
) -> Samples:
    """Return the images below a folder, decoded batch by batch.

    Args:
        folder: Searched with its subfolders.
        entry: The input that they feed, of shape `(batch, height, width, channels)`.
        options: The size to resize to (bilinear), where None takes the input's own, or the images' where they agree;
            the scale; images in a batch.
        limit: Use at most so many, chosen by the seed.
        seed: Decides the order; None keeps that of the names.
        option: The option that named the folder, for messages.

    Raises:
        BadRequest: There are no images, one cannot be decoded, or an option cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
    if not paths:
        raise BadRequest(f"{option} {folder}: no .png or .jpg images in this folder")
    if entry.shape is not None and len(entry.shape) != 4:
        raise BadRequest(
            f"{option} {folder}: images feed inputs of four dimensions; {entry.name} has {len(entry.shape)}"
        )
    height, width = options.image_size or _own_size(entry)
    factor, offset = options.image_scale or (1.0, 0.0)
    channels = entry.shape[3] if entry.shape is not None and entry.shape[3] is not None else 3
    order = permutation(len(paths), seed)[: limit or len(paths)]
    chosen = [paths[number] for number in order]
    batch_size = options.batch_size
    starts = range(0, len(chosen), batch_size)
    tf = tensorflow()

    def decoded(path: Path) -> Array:
        try:
            image = tf.io.decode_image(path.read_bytes(), channels=channels, expand_animations=False)
        except (tf.errors.InvalidArgumentError, OSError) as error:
            raise BadRequest(f"{path}: cannot be decoded as an image: {reason(error)}") from error
        image = tf.cast(image, tf.float32)
        if height is not None and tuple(image.shape[:2]) != (height, width):
            image = tf.image.resize(image, (height, width))
        value: Array = (image * factor + offset).numpy().astype(numpy_dtype(entry.dtype))
        return value

    def fetch(number: int, start: int, end: int) -> dict[str, Array]:
        images = [decoded(path) for path in chosen[starts[number] + start : starts[number] + end]]
        if len({image.shape for image in images}) > 1:
            raise BadRequest(f"{option} {folder}: the images have different sizes; pass --image-size HxW")
        return {entry.tensor: np.stack(images)}

    notes = (
        ()
        if options.image_scale is not None
        else (f"pixels of {folder.name} feed the model as 0..255; see --image-scale",)
    )
    return Samples(tuple(len(chosen[start : start + batch_size]) for start in starts), fetch, notes)


def _own_size(entry: ModelInput) -> tuple[int | None, int | None]:
    own = entry.shape[1:3] if entry.shape is not None else (None, None)
    return (own[0], own[1]) if None not in own else (None, None)
