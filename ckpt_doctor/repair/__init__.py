"""From a sick checkpoint to a repaired one, and the proof.

`targets` decides what may be changed and why, `work` runs the model or finds what is in the file already, `companions`
derives everything that must agree with a statistic, `planning` gives it stored types, `writing` writes and verifies,
`proof` compares with the data, `guard` asks what speaks against it, `process` puts them in order.
"""

from ckpt_doctor.repair.process import fix

__all__ = ["fix"]
