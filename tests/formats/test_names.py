"""The names of formats and kinds of damage: one list each, which rules, schema and formats agree with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import ckpt_doctor
from ckpt_doctor.checkpoint import LAYOUTS, DefectKind, FormatName
from ckpt_doctor.formats import FORMATS, by_name, open_checkpoint
from ckpt_doctor.rules import RULES

FIXTURES = Path(__file__).parents[2] / "fixtures" / "formats"


def test_every_kind_of_damage_has_its_rule() -> None:
    reported = {rule.name for rule in RULES if rule.code.startswith("CK1")}
    assert set(get_args(DefectKind)) == reported


def test_every_format_has_its_layout_and_its_place_in_the_schema() -> None:
    names = set(get_args(FormatName))
    assert LAYOUTS.keys() == names
    assert {form.name for form in FORMATS} <= names
    schema = json.loads((Path(ckpt_doctor.__file__).parent / "schemas" / "scan-1.json").read_text())
    enums = [set(found) for found in _enums(schema) if "tensor-bundle" in found]
    assert enums
    assert all(enum == names | {"unknown"} for enum in enums)


def _enums(part: Any) -> list[list[str]]:
    if isinstance(part, dict):
        own = [part["enum"]] if "enum" in part else []
        return own + [enum for value in part.values() for enum in _enums(value)]
    return [enum for value in part for enum in _enums(value)] if isinstance(part, list) else []


def test_the_file_that_stands_for_a_checkpoint_is_one_of_its_own() -> None:
    for path in ("bundle_objects/sample", "saved_model_tf2/sample", "v1/sample", "keras/keras3.keras"):
        checkpoint = open_checkpoint(FIXTURES / path)
        assert f"{checkpoint.path}{checkpoint.layout.suffix}" in checkpoint.files


def test_what_is_one_file_is_known_by_its_extension() -> None:
    for ending in (".h5", ".keras", ".weights.h5", ".weights.json"):
        form = by_name(f"model{ending}")
        assert form is not None
        assert LAYOUTS[form.name].one_file
