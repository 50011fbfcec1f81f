"""The reports of a scan: result in, string out. To add one, write its file and its line here."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_doctor.reports import json, text
from ckpt_doctor.reports.interface import Report

REPORTS: Mapping[str, Report] = {
    "text": text.render,
    "json": json.render,
}
