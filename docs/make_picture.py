"""Write `docs/demo.svg`, the picture at the top of README, from what the program prints: `python docs/make_picture.py`.

It scans and repairs the checkpoint of `ckpt-doctor demo`, as on a terminal of 80 columns, and needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from html import unescape
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import ckpt_doctor
from ckpt_doctor.cli import main

PICTURE = Path(__file__).parent / "demo.svg"
COMMANDS = (
    "ckpt-doctor scan ckpt-doctor-demo/model.ckpt-400",
    "ckpt-doctor fix ckpt-doctor-demo/model.ckpt-400 --data ckpt-doctor-demo/calibration.npz --output fixed",
)
_COLUMNS = 80
# Rich's own frame loads a font from the network; this one takes what the reader has.
_FRAME = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: \
{char_height}px; line-height: {line_height}px; white-space: pre }}
{styles}
</style>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


class _Screen(io.StringIO):
    """A stdout that takes colours."""

    def isatty(self) -> bool:
        """Return that this is a terminal."""
        return True


def session() -> str:
    """Return what a terminal shows of `COMMANDS` and their output, with its control sequences."""
    screen = _Screen()
    kept = Path.cwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(ckpt_doctor.__file__).parent / "demo", Path(folder) / "ckpt-doctor-demo")
        os.environ["COLUMNS"] = str(_COLUMNS)
        os.environ.pop("NO_COLOR", None)
        os.chdir(folder)
        try:
            for command in COMMANDS:
                screen.write(f"\x1b[1m{_wrapped(command)}\x1b[0m\n")
                with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
                    main(shlex.split(command)[1:])
                screen.write("\n")
        finally:
            os.chdir(kept[0])
            os.environ.clear()
            os.environ.update(kept[1])
    return screen.getvalue().rstrip() + "\n"


def picture(shown: str) -> str:
    """Return a terminal's session as SVG."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(shown))
    svg = console.export_svg(title="", theme=MONOKAI, code_format=_FRAME, unique_id="demo")
    svg = re.sub(r' clip-path="[^"]*"', "", svg)  # nothing is longer than its line
    svg = re.sub(r'(?<=[" ])\d+\.\d{3,}(?=")', lambda number: f"{float(number[0]):.1f}", svg)  # the size of the frame
    return "\n".join(line.strip() for line in svg.splitlines() if line.strip()) + "\n"


def text_of(svg: str) -> str:
    """Return the text that a picture shows, line by line, without what stands in front of a line."""
    rows: dict[float, list[str]] = {}
    for y, text in re.findall(r'<text [^>]*\by="([\d.]+)"[^>]*>(.*?)</text>', svg, re.DOTALL):
        rows.setdefault(float(y), []).append(unescape(text).replace("\xa0", " "))
    return "\n".join("".join(rows[y]).strip() for y in sorted(rows))


def _wrapped(command: str) -> str:
    """Return a command as one types it, with every option on a line of its own where the line is too long."""
    if len(command) + 2 <= _COLUMNS:
        return f"$ {command}"
    return "$ " + re.sub(r" (--\w+)", r" \\\n    \1", command)


if __name__ == "__main__":
    PICTURE.write_text(picture(session()), encoding="utf-8")
