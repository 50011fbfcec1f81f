"""What a graph does beyond arithmetic: operations that touch files, the network, Python, or the process itself.

A graph is a program. TensorFlow runs whatever it holds, so what comes from strangers is looked through before that.
Source of the names: the registry of TensorFlow 2.21 (`TF_GetAllOpList`), all operations that are stateful, and those
whose attributes or inputs name a file or an address; and SECURITY.md of TensorFlow, "TensorFlow models are programs".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from ckpt_doctor.errors import RepairRefused
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb

_KINDS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "calls Python": re.compile(r"(Eager)?PyFunc(Stateless)?"),
        "writes files": re.compile(
            r"WriteFile|Save(V2|Slices)?|DistributedSave|MergeV2Checkpoints|SaveDataset(V2)?|(Experimental)?DatasetToTFRecord"
            r"|CacheDataset(V2)?|Snapshot\w*Dataset\w*|CreateSummary(File|Db)Writer|SummaryWriter|Write\w*Summary"
            r"|ImportEvent|DumpTensor|CalibrationStatisticsSaver|Debug\w*Identity\w*|DebugNumericSummary\w*|DebugNanCount"
        ),
        "reads files": re.compile(
            r"ReadFile|MatchingFiles|ImmutableConst|RecordInput|LoadAndRemapMatrix|LoadDataset|ListSnapshotChunksDataset"
            r"|(DTensor)?Restore(V2|Slice)?|(Encode|Decode)Proto(V2)?"
            r"|(Experimental)?(MatchingFiles|TextLine|TFRecord|FixedLengthRecord|LMDB|CSV|Sql)Dataset(V2)?"
            r"|(TextLine|TFRecord|FixedLengthRecord|WholeFile|LMDB)Reader(V2)?"
        ),
        "uses the network": re.compile(
            r"Rpc\w*|TryRpc|DataServiceDataset\w*|RegisterDataset(V2)?|RemoteCall|RemoteFusedGraphExecute|WorkerHeartbeat"
            r"|_?ConfigureDistributedTPU|ConfigureAndInitializeGlobalTPU|FileSystemSetConfiguration"
        ),
        "ends the process": re.compile(r"Abort"),
    }
)
_PRINTS = "PrintV2"
# What a model that Keras 2 saved brings to be saved and restored itself; nothing calls it when the model is run.
_SAVING = re.compile(r"__inference__?traced_(save|restore)(_\d+)?")


def side_effects(graph: pb.GraphDef) -> tuple[str, ...]:
    """Return what the nodes of a graph, and the functions that they call, do beyond arithmetic.

    Returns:
        Texts such as `writes files (WriteFile export/w)`, each kind once.
    """
    return _told(graph.node, {function.signature.name: function for function in graph.library.function})


def side_effects_of_model(graph: pb.GraphDef) -> tuple[str, ...]:
    """Return the same of a graph that Keras loads with all of its functions, whichever it may call.

    What saves and restores the variables is passed over, unless another function calls it.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    nodes = [node for name, function in functions.items() if not _SAVING.fullmatch(name) for node in function.node_def]
    # The nodes of the graph itself are the saver's too: it restores by calling the functions that were passed over.
    called = [node for node in graph.node if not any(_SAVING.fullmatch(name) for name in _calls(node))]
    savers = {"SaveV2", "RestoreV2", "MergeV2Checkpoints"}
    return _told([*nodes, *(node for node in called if node.op not in savers)], functions)


def refuse_side_effects(where: str, effects: Iterable[str], allow_code: bool) -> None:
    """Refuse to run a graph that does more than compute, unless the user trusts it.

    Raises:
        RepairRefused: It does.
    """
    told = ", ".join(effects)
    if told and not allow_code:
        raise RepairRefused(
            f"{where}: its graph does more than compute: it {told}; if you trust it, allow it with --allow-code"
        )


def _told(nodes: Iterable[pb.NodeDef], functions: Mapping[str, pb.FunctionDef]) -> tuple[str, ...]:
    found: dict[str, str] = {}
    for node in _reached(nodes, functions):
        kind = _kind(node)
        if kind is not None:
            found.setdefault(kind, f"{kind} ({node.op} {node.name})")
    return tuple(found.values())


def _reached(nodes: Iterable[pb.NodeDef], functions: Mapping[str, pb.FunctionDef]) -> Iterator[pb.NodeDef]:
    """Yield the nodes, and those of all functions that they lead to, each function once."""
    seen: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for name in _calls(node):
            if name in functions and name not in seen:
                seen.add(name)
                pending.extend(functions[name].node_def)


def _calls(node: pb.NodeDef) -> Iterator[str]:
    """Yield the names of the functions that a node may call."""
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for inner in value.list.func:
            yield inner.name


def _kind(node: pb.NodeDef) -> str | None:
    """Return what a node does beyond arithmetic; None for one that only computes."""
    if node.op == _PRINTS:
        stream = node.attr["output_stream"].s if "output_stream" in node.attr else b""
        return "writes files" if stream.startswith(b"file:") else None
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(node.op)), None)
