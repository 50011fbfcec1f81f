"""The options that say what to feed to a model: the same for `fix` and for `scan --data`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ckpt_doctor.cli.options import pairs

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--data", metavar="DATA", multiple=True, help="FILE.npz[key], a folder of images, MODULE:FUNCTION …"),
    click.option("--model", metavar="MODEL", help="The model, where the checkpoint does not say: .meta, .keras …"),
    click.option(
        "--input", "inputs", metavar="NAME=TENSOR", multiple=True, help="Feed NAME of the data to this tensor."
    ),
    click.option("--feed", "feeds", metavar="TENSOR=VALUE", multiple=True, help="Feed a constant."),
    click.option("--batch-size", metavar="N", type=click.IntRange(min=1), default=64, show_default=True),
    click.option("--samples", metavar="N", type=click.IntRange(min=1), help="Use at most N samples, by the seed."),
    click.option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="Decides the order of the samples."
    ),
    click.option("--parse", metavar="MODULE:FUNCTION", help="Reads one record of *.tfrecord data."),
    click.option("--image-size", metavar="HxW", help="Resize the images of a folder."),
    click.option("--image-scale", metavar="A,B", help="A pixel p of 0..255 becomes A*p+B."),
    click.option("--unproven", is_flag=True, help="Also repair what only looks broken; run graphs that draw noise."),
    click.option("--allow-code", is_flag=True, help="Run Python that the checkpoint itself contains."),
)


def data_options(command: _Command) -> _Command:
    """Add the options to a command, in the order of the tuple above."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def tidied(options: dict[str, Any]) -> dict[str, Any]:
    """Return what click gives for the options as what `fix` and `scan` take."""
    return {
        **options,
        "inputs": pairs("--input", options["inputs"]),
        "feeds": pairs("--feed", options["feeds"]),
    }
