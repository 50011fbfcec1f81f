"""The text form of a SavedModel, `saved_model.pbtxt`, which `SavedModelBuilder.save(as_text=True)` writes.

Protobuf's own parser reads it, into our part of TensorFlow's messages: what we do not know of is dropped. Our messages
hold enumerations as numbers, and the text names them, so names become numbers first. Protobuf prints one field a line
and escapes the ends of lines in strings, so a name without quotes at the end of a line is always an enumeration.
"""

from __future__ import annotations

import re

from google.protobuf import text_format

from ckpt_doctor.formats._dtypes import NAMES_IN_TEXT
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

# tensorflow/core/protobuf/saver.proto; tensorflow/core/framework/variable.proto.
ENUMERATIONS = {
    **NAMES_IN_TEXT,
    "LEGACY": 0,
    "V1": 1,
    "V2": 2,
    "VARIABLE_SYNCHRONIZATION_AUTO": 0,
    "VARIABLE_SYNCHRONIZATION_NONE": 1,
    "VARIABLE_SYNCHRONIZATION_ON_WRITE": 2,
    "VARIABLE_SYNCHRONIZATION_ON_READ": 3,
    "VARIABLE_AGGREGATION_NONE": 0,
    "VARIABLE_AGGREGATION_SUM": 1,
    "VARIABLE_AGGREGATION_MEAN": 2,
    "VARIABLE_AGGREGATION_ONLY_FIRST_REPLICA": 3,
}
_NAMED = re.compile(r"^(\s*\w+:\s*)([A-Z][A-Z0-9_]*)\s*$", re.MULTILINE)
# Protobuf reads about 1 MB a second, in pure Python. Weights are in `variables/`, and not in the text.
_LONGEST_BYTES = 32 << 20


class NotRead(Exception):
    """The text is too long, or not what can be understood; says why."""


def saved_model_of(text: bytes) -> bytes:
    """Return the serialised `SavedModel` of its text form.

    Raises:
        NotRead: It is longer than 32 MB, or protobuf cannot parse it.
    """
    if len(text) > _LONGEST_BYTES:
        raise NotRead(f"the text is longer than {_LONGEST_BYTES >> 20} MB")

    def number(named: re.Match[str]) -> str:
        return named[1] + str(ENUMERATIONS.get(named[2], named[2]))

    try:
        message = text_format.Parse(_NAMED.sub(number, text.decode("utf-8")), pb.SavedModel(), allow_unknown_field=True)
    except (UnicodeDecodeError, text_format.ParseError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotRead(f"it is not a SavedModel in text form ({first[:200]})") from error
    return bytes(message.SerializeToString(deterministic=True))
