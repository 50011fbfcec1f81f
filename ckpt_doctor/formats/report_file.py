"""The file that a report goes to: never a checkpoint or a part of one, and never half a report."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.formats import recognise
from ckpt_doctor.formats._atomic import Outputs
from ckpt_doctor.formats.discovery import STATE_FILE
from ckpt_doctor.formats.saved_model import model_of_a_part

# Another run that writes the same report is done in a moment.
_WAIT = 10.0


def check_report(option: str, name: str) -> None:
    """Refuse a report's file that cannot be written or would replace a checkpoint, before the work is done.

    Args:
        option: The option that names it, for the message.
        name: The file.

    Raises:
        BadRequest: Its folder is not there, it is a folder itself, or it is a checkpoint or a file of one.
    """
    path = Path(name)
    if path.is_dir():
        raise BadRequest(f"{option} {name}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise BadRequest(f"{option} {name}: its folder {path.parent} does not exist")
    for place in dict.fromkeys((path, Path(os.path.realpath(path)))):
        form, owner = recognise(str(place)), model_of_a_part(place)
        if form is not None:
            what = f"a checkpoint or a file of one ({form.name})"
        elif owner is not None:
            what = f"a file of the SavedModel {owner}"
        elif place.name == STATE_FILE and place.is_file():
            what = "the file in which TensorFlow lists its checkpoints"
        else:
            continue
        raise BadRequest(f"{option} {name}: would overwrite {what}; pass another name")


def write_report(option: str, name: str, text: str) -> None:
    """Write a report; what was there stays until all of it is written.

    A device or a pipe is written to as it is, and so is all in `/dev` and `/proc`.

    Args:
        option: The option that names the file, for messages.
        name: The file.
        text: The report.

    Raises:
        BadRequest: See `check_report`; or the file system refuses.
    """
    check_report(option, name)
    content = text.encode("utf-8", "backslashreplace")
    path = Path(name)
    place = Path(os.path.realpath(path))
    outputs = Outputs(place, overwrite=True, wait=_WAIT)
    with outputs.all_or_nothing():
        # `/dev/stdout` may be a file, and others hold it open.
        if (path.exists() and not path.is_file()) or path.absolute().parts[1:2] in (("dev",), ("proc",)):
            path.write_bytes(content)
            return
        outputs.stage(place).write_bytes(content)
        outputs.commit()
