"""Reads a graph once and loads a model once, for tests of what comes behind that.

A graph is a function of its bytes, and a model of its files and a few options: what a test module does with the same
one for the tenth time need not parse and trace it for the tenth time. How they are read has tests of its own, which
leave these fixtures out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

# Those of the fixtures and of what tests make, many of which several modules look at; of a published one there is one
# look, and it may be large.
_GRAPHS: dict[bytes, Any] = {}
_LARGEST = 1_000_000


@pytest.fixture(scope="module")
def graphs_read_once() -> Iterator[None]:
    """Parse the same bytes of a graph once in all modules that use this."""
    from ckpt_doctor.graphs.graph import Graph
    from ckpt_doctor.graphs.meta_graph import MetaGraph

    parse: Callable[[bytes], MetaGraph] = MetaGraph.parse

    def parse_once(data: bytes) -> MetaGraph:
        if len(data) > _LARGEST:
            return parse(data)
        digest = hashlib.sha256(data).digest()
        if digest not in _GRAPHS:
            _GRAPHS[digest] = parse(data)
        return _GRAPHS[digest]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetaGraph, "parse", parse_once)
        # The steps that one look at a graph may take are not those of all looks (tests/graphs/test_bounded_work.py).
        patch.setattr(Graph, "spend", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def models_loaded_once(graphs_read_once: None) -> Iterator[None]:
    """Load the model of the same files with the same options once in a module."""
    from ckpt_doctor.capture import estimation, metric
    from ckpt_doctor.repair import work

    known: dict[Any, Any] = {}
    load = estimation.load_model

    def load_once(checkpoint: Any, inventory: Any, request: Any, outputs: Sequence[str] = ()) -> Any:
        options = (request.model, request.inputs, request.feeds, request.unproven, request.allow_code, list(outputs))
        names = [layer.name for layer in inventory.layers]
        key = (_digest(checkpoint), repr(options), repr(names))
        if key not in known:
            known[key] = load(checkpoint, inventory, request, outputs)
        program = known[key].program
        # The engine takes the values out when it has set them.
        return replace(known[key], program=replace(program, values=dict(program.values)))

    with pytest.MonkeyPatch.context() as patch:
        for module in (estimation, metric, work):
            patch.setattr(module, "load_model", load_once)
        yield


def _digest(checkpoint: Any) -> str:
    """Return the hash of all files of a checkpoint, of the graph beside it too, wherever they are staged."""
    found = hashlib.sha256()
    for file in checkpoint.files:
        found.update(Path(checkpoint.place_of(file)).read_bytes())
    found.update(checkpoint.descriptions.meta_graph or b"")
    return found.hexdigest()
