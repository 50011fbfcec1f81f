"""The Markdown report, as a Markdown parser reads it."""

import re

from markdown_it import MarkdownIt

from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult
from tests.reports.results import ALL_LEVELS, BROKEN, LAYERS, NOTHING_FOUND, checkpoint

PLAIN = Style()


def html(result, style=PLAIN):
    # Raw HTML off: what the report itself writes (`<br>`) is escaped too, and what a name smuggles in cannot hide.
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(REPORTS["markdown"](result, style))


def test_the_table_has_a_row_for_every_checkpoint_and_a_cell_for_every_column():
    page = html(ALL_LEVELS)
    assert page.count("<tr>") == 1 + len(ALL_LEVELS.checkpoints)
    assert page.count("<td") == 8 * len(ALL_LEVELS.checkpoints)
    rows = page.split("<tr>")[2:]
    assert "model.ckpt-7" in rows[0]
    assert "healthy" in rows[-1]


def test_names_stay_names():
    page = html(ALL_LEVELS).replace("&lt;br&gt;", "")
    text = REPORTS["markdown"](ALL_LEVELS, PLAIN)
    assert "<b>" not in page
    assert "\x1b" not in text
    outside_code = "".join(part for part in re.split("</?code[^>]*>", page)[::2])
    assert "@all" not in outside_code
    assert page.count("<h3>") == 5  # One each for what is wrong, no verdict, and suppressions; none from a name.


def test_findings_link_to_their_rule_and_the_next_step_can_be_copied():
    text = REPORTS["markdown"](AuditResult((BROKEN,)), PLAIN)
    assert "docs/rules.md#bn101) missing-moving-mean" in text
    assert "```sh\nckpt-doctor fix models/model.ckpt-7 \\\n" in text
    assert "53 layers: `net/block0/bn`" in text
    assert "and 45 more" in text
    assert all(f"`{name}`" in REPORTS["markdown"](AuditResult((BROKEN,)), Style(detail="more")) for name in LAYERS)


def test_nothing_found_is_short():
    assert REPORTS["markdown"](NOTHING_FOUND, PLAIN).count("\n") < 10


def test_a_summary_of_many_checkpoints_shows_the_sick_ones():
    many = AuditResult((*(checkpoint(path=f"ok{n}") for n in range(80)), BROKEN))
    text = REPORTS["markdown"](many, PLAIN)
    assert text.index("model.ckpt-7") < text.index("ok0")
    assert "| | and 31 more |" in text
