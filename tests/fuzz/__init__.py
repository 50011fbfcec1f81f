"""Damaged input by the million: `python -m tests.fuzz`, see `docs/reliability.md`."""
