"""What names say: of one variable (`reading`), and of the variables of a file together (`groups`)."""

from __future__ import annotations

from ckpt_doctor.naming.groups import Group, Grouped, drifted, group_variables
from ckpt_doctor.naming.reading import Named, looks_like_batch_norm, read_name, with_role

__all__ = ["Group", "Grouped", "Named", "drifted", "group_variables", "looks_like_batch_norm", "read_name", "with_role"]
