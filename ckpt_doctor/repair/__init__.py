"""From a sick checkpoint to a repaired one, and the proof.

`targets` decides what may be changed and why, `estimation` runs the model, `companions` derives everything that must
agree with a statistic, `writing` writes and verifies, `process` puts them in order.
"""

from ckpt_doctor.repair.process import fix

__all__ = ["fix"]
