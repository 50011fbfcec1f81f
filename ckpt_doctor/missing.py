"""Variables that a checkpoint lists and does not hold; the statistics of batch norm have rules of their own."""

from __future__ import annotations

from ckpt_doctor.batchnorm import Inventory
from ckpt_doctor.checkpoint import Checkpoint, Damage
from ckpt_doctor.graphs import Description

# Of a longer list, so many are named.
_NAMED = 3
# What Keras goes on without, with a warning.
_OPTIMIZER = "optimizer_weights/"
_LISTS = {
    "graph": "the saver of its graph lists",
    "object-graph": "its object graph lists",
    "config": "its config needs",
}
_OWN_LIST = "its lists of weights name"


def missing_variables(checkpoint: Checkpoint, description: Description | None, inventory: Inventory) -> Damage | None:
    """Return what is missing as one defect, or None where everything that is listed is there.

    Args:
        checkpoint: The checkpoint.
        description: What its model says.
        inventory: Its variables; the statistics that its layers lack are left out.
    """
    source, listed = _OWN_LIST, checkpoint.attributes.get("absent", ())
    if not listed and description is not None and _is_of_the_same_save(checkpoint, description):
        source, listed = _LISTS.get(description.facts.evidence, ""), description.facts.stored
    known = {variable.name for variable in checkpoint.variables}
    for layer in inventory.layers:
        known |= {*layer.absent.values(), *layer.absent_companions.values()}
    missing = sorted(name for name in listed if name not in known and not name.startswith(_OPTIMIZER))
    if not missing:
        return None
    named = ", ".join(missing[:_NAMED])
    if len(missing) > _NAMED:
        named += f" and {len(missing) - _NAMED} more"
    count = "a variable that is" if len(missing) == 1 else f"{len(missing):,} variables that are"
    message = f"{source} {count} not in the file: {named}; take them from another checkpoint of the same training"
    return Damage("missing-variables", checkpoint.path, message, tuple(missing))


def _is_of_the_same_save(checkpoint: Checkpoint, description: Description) -> bool:
    """Return whether a description was saved with the checkpoint: one that the user names may be of a larger model."""
    said = checkpoint.descriptions
    own = said.saved_model is not None if said.meta_graph is None else said.meta_graph_path in checkpoint.files
    return description.facts.evidence != "graph" or own
