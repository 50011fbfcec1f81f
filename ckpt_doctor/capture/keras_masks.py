"""Which positions a masked Keras batch-norm layer counts in training.

A mask has a dimension less than the layer's input, the last, and is broadcast to it whatever the channel axis is
(keras/src/layers/normalization/batch_normalization.py: `_moments`, 3.15; tf_keras: `tf.nn.weighted_moments`).
"""

from __future__ import annotations

from typing import Any

from ckpt_doctor.capture.runtime import tensorflow


def masks(layer: Any, mask: Any) -> bool:
    """Return whether a layer leaves positions out; the fused kernel of Keras 2 counts all (`_fused_batch_norm`)."""
    return mask is not None and not getattr(layer, "fused", False)


def why_not_counted(layer: Any, rank: int, mask: Any, axis: int) -> str | None:
    """Return why the positions that a mask leaves cannot be counted, or None if they can.

    Args:
        layer: The layer.
        rank: Number of dimensions of its input.
        mask: Its mask, or None.
        axis: The channel axis of its input, from 0.
    """
    if not masks(layer, mask):
        return None
    from_end = axis - (rank - 1)
    if from_end and -from_end <= len(mask.shape) and mask.shape[from_end] != 1:
        return "its mask differs from channel to channel, so each channel counts other positions"
    # Keras 3 makes booleans of any mask, Keras 2, whose layers alone have `fused`, takes its numbers as weights.
    dtype = tensorflow().as_dtype(mask.dtype).name
    if hasattr(layer, "fused") and dtype != "bool":
        return f"its mask is of {dtype}, whose values are weights; only masks of bool can be counted"
    return None


def counted(x: Any, mask: Any, axis: int) -> Any:
    """Return the values that training counts, of shape `(positions, channels)`.

    Args:
        x: What goes into the layer.
        mask: Its mask, alike for all channels.
        axis: The channel axis of `x`, from 0.
    """
    tf = tensorflow()
    rank = x.shape.rank
    channels_last = [number for number in range(rank) if number != axis] + [axis]
    values = tf.transpose(x, channels_last)
    weights = tf.expand_dims(tf.cast(tf.convert_to_tensor(mask), tf.bool), -1)
    # Of fewer dimensions, it is aligned at the last one, as in NumPy.
    weights = tf.reshape(weights, tf.concat([[1] * (rank - weights.shape.rank), tf.shape(weights)], 0))
    weights = tf.transpose(weights, channels_last)[..., 0]
    whole = tf.broadcast_to(weights, tf.shape(values)[:-1])
    return tf.boolean_mask(tf.reshape(values, [-1, values.shape[-1]]), tf.reshape(whole, [-1]))
