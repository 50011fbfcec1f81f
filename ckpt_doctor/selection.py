"""Which rules are reported, and how loud: `--select`, `--ignore`, `--severity`.

A rule is meant by its code (`BN201`), its name (`never-updated`) or the beginning of its code (`BN2`: the whole range).
What means no rule is an error: a typo must not switch a check off, or on.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckpt_doctor.errors import BadRequest
from ckpt_doctor.finding import SEVERITIES, Finding, Severity
from ckpt_doctor.rules import RULES
from ckpt_doctor.rules.interface import Rule


@dataclass(frozen=True)
class Selection:
    """What the user wants to hear.

    Attributes:
        codes: The codes of the rules that are reported.
        severities: Code to the severity that its findings get instead of their own.
    """

    codes: frozenset[str]
    severities: Mapping[str, Severity]

    @classmethod
    def of(cls, select: Sequence[str], ignore: Sequence[str], severity: Mapping[str, Severity]) -> Selection:
        """Return what `select`, `ignore` and `severity` come to; an empty `select` means all rules.

        Of two severities for one rule the one said more precisely counts: `BN201` before `BN2`.

        Raises:
            BadRequest: One of them means no rule, or a severity is none.
        """
        codes = {rule.code for rule in RULES} if not select else set(codes_of(select))
        severities: dict[str, Severity] = {}
        for text, level in sorted(severity.items(), key=lambda item: len(item[0])):
            if level not in SEVERITIES:
                raise BadRequest(f"severity of {text}: {level!r} is not one of {', '.join(SEVERITIES)}")
            severities.update(dict.fromkeys(codes_of([text]), level))
        return cls(frozenset(codes - set(codes_of(ignore))), severities)

    def apply(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Yield what is to be reported, at the severity that it is to be reported at."""
        for finding in findings:
            if finding.rule in self.codes:
                level = self.severities.get(finding.rule, finding.severity)
                yield finding if level == finding.severity else dataclasses.replace(finding, severity=level)


def rule_of(text: str) -> Rule:
    """Return the rule whose code or name `text` is, in upper or lower case.

    Raises:
        BadRequest: There is none.
    """
    for rule in RULES:
        if text.upper() == rule.code or text.lower() == rule.name:
            return rule
    raise BadRequest(_unknown(text))


def codes_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield the code of every rule that `texts` mean: codes, names or beginnings of codes, one a text or with commas.

    Raises:
        BadRequest: One of them means no rule.
    """
    for text in (part.strip() for joined in texts for part in joined.split(",")):
        if not text:
            continue
        meant = [rule.code for rule in RULES if rule.code.startswith(text.upper()) or rule.name == text.lower()]
        if not meant:
            raise BadRequest(_unknown(text))
        yield from meant


def _unknown(text: str) -> str:
    known = {rule.code.lower(): rule.code for rule in RULES} | {rule.name: rule.name for rule in RULES}
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    meant = f"; did you mean {known[near[0]]}?" if near else "; `ckpt-doctor explain` lists the rules"
    return f"no such rule: {text!r}{meant}"
