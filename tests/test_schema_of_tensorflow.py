"""Our protobuf schema against the installed TensorFlow's: the same fields, numbers, types and labels."""

import importlib
import pkgutil

import pytest
from google.protobuf.descriptor import FieldDescriptor

from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

pytestmark = pytest.mark.tensorflow

# What begins a record in a file, ours to TensorFlow's; everything else is reached from these.
ROOTS = {
    "MetaGraphDef": "MetaGraphDef",
    "SavedModel": "SavedModel",
    "VariableDef": "VariableDef",
    "TrackableObjectGraph": "TrackableObjectGraph",
    "BundleHeader": "BundleHeaderProto",
    "BundleEntry": "BundleEntryProto",
    "SavedTensorSlices": "SavedTensorSlices",
    "CheckpointState": "CheckpointState",
}
# Written in the same way: enumerations as their numbers, text as its bytes.
ALIKE = {
    FieldDescriptor.TYPE_ENUM: FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_STRING: FieldDescriptor.TYPE_BYTES,
}


def tensorflow_messages():
    """Return every top-level message of the TensorFlow that is installed, by name."""
    from tensorflow.core import framework, protobuf, util
    from tensorflow.python.training import checkpoint_state_pb2

    files = [checkpoint_state_pb2.DESCRIPTOR]
    for package in (framework, protobuf, util):
        names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name.endswith("_pb2")]
        files += [importlib.import_module(f"{package.__name__}.{name}").DESCRIPTOR for name in names]
    return {name: message for file in files for name, message in file.message_types_by_name.items()}


def ours():
    """Return every message of ours by name, nested ones too."""

    def nested(message):
        return {message.full_name.removeprefix("ckpt_doctor.proto."): message}.items() | {
            pair for inner in message.nested_types for pair in nested(inner)
        }

    return dict(sorted(pair for top in pb.DESCRIPTOR.message_types_by_name.values() for pair in nested(top)))


@pytest.fixture(scope="module")
def counterparts():
    """Give TensorFlow's message of the same place for every message of ours that the roots reach."""
    theirs = tensorflow_messages()
    stack = [(ours()[name], theirs[other]) for name, other in ROOTS.items()]
    found = {}
    while stack:
        message, other = stack.pop()
        if message.full_name in found:
            continue
        found[message.full_name] = other
        for field in message.fields:
            same = other.fields_by_name.get(field.name)
            if field.message_type is not None and same is not None and same.message_type is not None:
                stack.append((field.message_type, same.message_type))
    return found


def written(field):
    """Return what decides how a field is written."""
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED
    return field.number, ALIKE.get(field.type, field.type), repeated


@pytest.mark.parametrize("name", ours())
def test_fields_are_those_of_tensorflow(name, counterparts):
    message = ours()[name]
    theirs = counterparts[message.full_name].fields_by_name
    for field in message.fields:
        assert field.name in theirs
        assert written(field) == written(theirs[field.name]), field.name


def test_there_is_something_to_compare():
    assert len(ours()) > 40
    assert "AttrValue.ListValue" in ours()
