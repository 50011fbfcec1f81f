"""`ckpt-doctor fix`: repair the batch-norm statistics of this checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from ckpt_doctor.cli.options import bytes_of, pairs
from ckpt_doctor.cli.terminal import Terminal, check_output
from ckpt_doctor.errors import BadRequest

METHODS = ("auto", "layerwise", "training")


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option("--data", metavar="DATA", multiple=True, help="FILE.npz[key], a folder of images, MODULE:FUNCTION …")
@click.option("--output", metavar="PATH", help="Where to write the repaired checkpoint: a prefix, folder or file.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --output.")
@click.option("--in-place", is_flag=True, help="Repair the checkpoint itself; a backup is kept.")
@click.option("--no-backup", is_flag=True, help="With --in-place: keep no backup.")
@click.option("--model", metavar="MODEL", help="The model, where the checkpoint does not say: .meta, .keras …")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="How to estimate.")
@click.option("--layers", metavar="GLOB", multiple=True, help="Only, or also, layers of these names.")
@click.option("--input", "inputs", metavar="NAME=TENSOR", multiple=True, help="Feed NAME of the data to this tensor.")
@click.option("--feed", "feeds", metavar="TENSOR=VALUE", multiple=True, help="Feed a constant.")
@click.option("--batch-size", metavar="N", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--samples", metavar="N", type=click.IntRange(min=1), help="Use at most N samples, chosen by the seed.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="Decides the order of the samples.")
@click.option("--parse", metavar="MODULE:FUNCTION", help="Reads one record of *.tfrecord data.")
@click.option("--image-size", metavar="HxW", help="Resize the images of a folder.")
@click.option("--image-scale", metavar="A,B", help="A pixel p of 0..255 becomes A*p+B.")
@click.option("--cache-memory", metavar="SIZE", default="2GB", show_default=True, help="Activations held in memory.")
@click.option("--unproven", is_flag=True, help="Also repair what only looks broken.")
@click.option("--force", is_flag=True, help="Repair layers that were trained in inference mode.")
@click.option("--allow-code", is_flag=True, help="Run Python that the checkpoint itself contains.")
@click.option("--dry-run", is_flag=True, help="Say what would be set; write nothing.")
@click.option("--full-verify", is_flag=True, help="Checksum every byte of what was written.")
@click.option("--format", "report", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@click.option("--receipt", metavar="FILE", help="Also write the JSON report to FILE.")
@click.pass_obj
def fix(
    terminal: Terminal,
    checkpoint: str,
    data: tuple[str, ...],
    output: str | None,
    overwrite: bool,
    in_place: bool,
    no_backup: bool,
    model: str | None,
    method: str,
    layers: tuple[str, ...],
    inputs: tuple[str, ...],
    feeds: tuple[str, ...],
    batch_size: int,
    samples: int | None,
    seed: int,
    parse: str | None,
    image_size: str | None,
    image_scale: str | None,
    cache_memory: str,
    unproven: bool,
    force: bool,
    allow_code: bool,
    dry_run: bool,
    full_verify: bool,
    report: str,
    receipt: str | None,
) -> int:
    """Repair the batch-norm statistics of a checkpoint from data.

    Only layers that `scan` finds broken are changed; everything else stays byte for byte what it was.

    Exit code: 0 repaired, or nothing to repair; 1 not everything was; 2 refused or failed, nothing written.
    """
    _check(output, overwrite=overwrite, in_place=in_place, no_backup=no_backup, dry_run=dry_run)
    check_output("--receipt", receipt)
    from ckpt_doctor.repair import fix as repair
    from ckpt_doctor.reports import json
    from ckpt_doctor.reports import repair as text

    with terminal.progress() as listener:
        result = repair(
            checkpoint,
            data=data,
            output=output,
            in_place=in_place,
            backup=not no_backup,
            overwrite=overwrite,
            model=model,
            method=method,
            layers=layers,
            inputs=pairs("--input", inputs),
            feeds=pairs("--feed", feeds),
            batch_size=batch_size,
            samples=samples,
            seed=seed,
            parse=parse,
            image_size=image_size,
            image_scale=image_scale,
            cache_memory=bytes_of("--cache-memory", cache_memory),
            unproven=unproven,
            force=force,
            allow_code=allow_code,
            dry_run=dry_run,
            full_verify=full_verify,
            progress=listener,
        )
    if receipt is not None and result.output is not None:
        Path(receipt).write_text(json.render_repair(result), encoding="utf-8")
    terminal.report(json.render_repair(result) if report == "json" else text.render(result, terminal.style()))
    return 0 if result.complete else 1


def _check(output: str | None, *, overwrite: bool, in_place: bool, no_backup: bool, dry_run: bool) -> None:
    """Refuse options that contradict each other before anything is read."""
    if in_place and output is not None:
        raise BadRequest("--in-place and --output PATH contradict each other; give one")
    if not in_place and output is None and not dry_run:
        raise BadRequest("where to? give --output PATH, --in-place (a backup is kept) or --dry-run")
    if no_backup and not in_place:
        raise BadRequest("--no-backup needs --in-place; --output leaves the checkpoint as it is")
    if overwrite and output is None:
        raise BadRequest("--overwrite needs --output PATH")
