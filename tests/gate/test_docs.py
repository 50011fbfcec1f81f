"""The documentation says what is: links lead somewhere, options exist, examples run, the page of rules is current."""

import re
import shutil
from pathlib import Path

import click
import pytest

from ckpt_doctor.cli import main
from ckpt_doctor.cli.group import ckpt_doctor_group
from ckpt_doctor.options import GateOptions, Options, RepairOptions, options_of
from ckpt_doctor.reports import REPORTS
from ckpt_doctor.reports._explanation import HEADINGS, explanations
from ckpt_doctor.rules import RULES
from tests.gate.conftest import FIXTURES

DOCS = FIXTURES.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_of_rules_is_made_from_the_rules(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import make_rules

    assert (DOCS / "rules.md").read_text() == make_rules.page(), "run `python docs/make_rules.py`"


def test_the_page_of_options_is_made_from_the_options(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import make_options

    assert (DOCS / "options.md").read_text() == make_options.page(), "run `python docs/make_options.py`"


@pytest.mark.parametrize("name", ["scan", "fix", "ls", "diff"])
def test_the_page_of_options_has_every_option_of_the_command_line_and_of_python(name):
    text = (DOCS / "options.md").read_text()
    for parameter in ckpt_doctor_group.commands[name].params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            assert re.search(rf"`(?:-\w/)?{max(parameter.opts, key=len)}[` ]", text), parameter.opts
    for option in options_of({"scan": GateOptions, "fix": RepairOptions}.get(name, Options)):
        assert re.search(rf"`{option.name}(?:=False)?`", text), option.name


def test_the_default_method_is_the_one_that_is_documented():
    [method] = [option for option in options_of(RepairOptions) if option.name == "method"]
    text = (DOCS / "estimate.md").read_text()
    assert f"The default is `{method.default}`" in text
    for name in method.kind.values:
        assert name == method.default or f"| `{name}` |" in text


def test_every_rule_says_what_it_is_and_what_to_do():
    for rule, found in zip(RULES, explanations(), strict=True):
        assert rule.documentation.startswith(f"{rule.code}: "), rule.code
        assert found.summary.endswith("."), rule.code
        assert "\n" not in found.summary
        headings = [block.heading for block in found.blocks]
        for heading in ("", "Usual cause", "False positives", "Repair", "Repair is unsafe when", "Source"):
            assert heading in headings, (rule.code, heading)
        in_order = [heading for heading in dict.fromkeys(headings) if heading]
        assert in_order == list(HEADINGS), rule.code
        for block in found.blocks:
            assert block.text, rule.code
            prose = re.match(r"[A-Z]?[a-z]+ [a-z]+ [a-z]+", block.text) is not None
            assert not (block.code and prose), f"{rule.code}: prose in an indented line after a full stop: {block.text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            text = target.read_text()
            headings = {
                re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")
                for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            }
            assert anchor in headings | set(re.findall(r'<a id="([^"]+)">', text)), link


def test_every_report_and_every_place_is_described():
    gate = (DOCS / "gate.md").read_text()
    for name in REPORTS:
        assert f"| `{name}` |" in gate
    formats = (DOCS / "formats.md").read_text()
    [shape] = re.findall(r'`({"schema".*?})`', gate)
    schema = (FIXTURES.parent / "ckpt_doctor" / "schemas" / "scan-1.json").read_text()
    for key in re.findall(r'"\w+"', shape):
        assert f"{key}: {{" in schema, key
    for name in ("tensor-bundle", "tensor-slices-v1", "saved-model", "keras-hdf5", "keras-weights-hdf5", "keras-v3"):
        assert f"| `{name}` |" in formats


def test_the_inputs_and_outputs_of_the_action_are_those_that_are_named():
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((DOCS.parent / "action.yml").read_text())
    [inputs, outputs] = re.findall(r"Inputs: (.*?); outputs: (.*?)\.", (DOCS / "gate.md").read_text(), re.DOTALL)[0]
    assert set(re.findall(r"`([\w-]+)`", inputs.replace("`scan`", ""))) == set(action["inputs"])
    assert set(re.findall(r"`([\w-]+)`", outputs)) == set(action["outputs"])


def test_the_configuration_that_is_shown_is_taken(tmp_path, monkeypatch, capsys):
    (table,) = blocks(DOCS / "gate.md", "toml")
    (tmp_path / "pyproject.toml").write_text(table)
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "keras_v3" / "healthy.keras", tmp_path)
    assert main(["scan", ".", "--write-baseline", "known.json"]) == 0
    assert main(["scan", "."]) == 0, capsys.readouterr().err


@pytest.mark.tensorflow
def test_the_python_that_is_shown_runs(tmp_path, monkeypatch, capsys):
    shutil.copytree(FIXTURES.parent / "ckpt_doctor" / "demo", tmp_path / "ckpt-doctor-demo")
    monkeypatch.chdir(tmp_path)
    examples = blocks(DOCS / "python.md", "python")
    assert len(examples) == 3
    # Each in a namespace of its own, and all in this process, which has loaded TensorFlow.
    for example in examples:
        exec(example, {"__name__": "__main__"})
        assert capsys.readouterr().out


def test_no_page_is_missing_from_the_index():
    index = (DOCS / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index


def test_the_version_that_is_named_is_this_one():
    import ckpt_doctor

    for page in (*PAGES, *Path(DOCS).glob("*.yml")):
        for version in re.findall(r"(?:@|rev: )v([\d.]+)", page.read_text()):
            if page.suffix == ".md" or "ckpt-doctor@" in page.read_text():
                assert version in (ckpt_doctor.__version__, "4"), page.name
