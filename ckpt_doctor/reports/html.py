"""One HTML file that needs nothing else: verdicts, findings with their explanation, every layer with its plots.

The page is a template with its style and script beside it in `page/`. It asks nothing of the network, and a
content-security policy says so to the browser. Plots are drawn by the page's own script when a layer is opened: a
plotting library would weigh more than the whole page may (3 MB for 200 layers), and a drawing of every layer too.
"""

from __future__ import annotations

import importlib.util
import json
from importlib import resources

import ckpt_doctor
from ckpt_doctor.errors import MissingExtra
from ckpt_doctor.repair_result import RepairResult
from ckpt_doctor.reports._html_content import page_of_repair, page_of_scan
from ckpt_doctor.reports._html_view import Page, Table
from ckpt_doctor.reports._page import visible
from ckpt_doctor.reports.interface import Style
from ckpt_doctor.result import AuditResult


def check_installed() -> None:
    """Raise `MissingExtra` where the template engine is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise MissingExtra('the HTML report needs jinja2; install it with: pip install "jinja2>=3.1"')


def render(result: AuditResult, style: Style) -> str:
    """Return the page of a scan; of `style` only the detail is heeded."""
    return _page(page_of_scan(result, style))


def render_repair(result: RepairResult, style: Style) -> str:
    """Return the page of a repair; `style` is not heeded."""
    del style
    return _page(page_of_repair(result))


def _page(page: Page) -> str:
    check_installed()
    import jinja2
    from markupsafe import Markup

    folder = resources.files("ckpt_doctor.reports") / "page"
    parts = {
        name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "table.html", "page.css", "page.js")
    }
    # Names come from files that anyone may have made: whatever is no template of ours is escaped.
    engine = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    engine.filters["prose"] = lambda text: Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(text.split("`"))
    )
    engine.filters["visible"] = visible
    table = engine.from_string(parts["table.html"])

    def rendered(one: Table) -> Markup:
        return Markup(table.render(table=one))

    return engine.from_string(parts["page.html"]).render(
        page=page,
        version=ckpt_doctor.__version__,
        table=rendered,
        css=Markup(parts["page.css"]),
        script=Markup(parts["page.js"]),
        values=Markup(json.dumps(page.values, separators=(",", ":")).replace("<", "\\u003c")),
    )
