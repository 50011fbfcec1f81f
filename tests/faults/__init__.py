"""Everything that can go wrong around a write, one thing at a time; `python -m tests.faults` counts what breaks."""
