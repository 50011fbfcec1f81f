"""Variables that are hung into an object graph."""

import pytest

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.formats._object_graph import with_variables
from ckpt_doctor.formats.interface import ObjectPlace
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
GAMMA = f"optimizer/_trainable_variables/3{VALUE}"
MEAN = f"model/bn/moving_mean{VALUE}"


def graph_of_an_optimizer():
    """The gamma of a layer that only an optimizer leads to."""
    graph = pb.TrackableObjectGraph()
    root, gamma = graph.nodes.add(), graph.nodes.add()
    root.children.add(node_id=1, local_name="gamma_of_optimizer")
    gamma.attributes.add(name="VARIABLE_VALUE", checkpoint_key=GAMMA)
    return graph


def path_to(graph, *names):
    number = 0
    for name in names:
        number = next(child.node_id for child in graph.nodes[number].children if child.local_name == name)
    return number


def test_objects_are_made_and_hold_what_is_beside():
    place = ObjectPlace("moving_mean", makes_owner=True, beside={"gamma": GAMMA})
    graph = pb.TrackableObjectGraph.FromString(
        with_variables(graph_of_an_optimizer().SerializeToString(), {MEAN: place})
    )
    assert graph.nodes[path_to(graph, "model", "bn", "moving_mean")].attributes[0].checkpoint_key == MEAN
    assert path_to(graph, "model", "bn", "gamma") == 1


def test_what_is_beside_must_be_there():
    place = ObjectPlace("moving_mean", makes_owner=True, beside={"gamma": f"model/other{VALUE}"})
    with pytest.raises(RepairRefused, match=r"model/other.* is not in the object graph"):
        with_variables(graph_of_an_optimizer().SerializeToString(), {MEAN: place})
