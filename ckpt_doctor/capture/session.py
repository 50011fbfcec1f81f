"""A program in a TensorFlow session: its graph imported, its variables set, its tables filled, ready to run."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ckpt_doctor.capture.program import Program
from ckpt_doctor.capture.runtime import reason, tensorflow
from ckpt_doctor.checkpoint import Array
from ckpt_doctor.errors import BadRequest, RepairRefused
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.graphs.loops import array_tensors

_log = logging.getLogger(__name__)

_ASSIGNED_TOGETHER = 16 * 10**6

# Where a batch of another size than a graph was made for fails.
_OF_SIZES = frozenset("Reshape MatMul BatchMatMulV2 Split SplitV Unpack ConcatV2".split())
_OTHER_BATCHES = "; if the graph was built for a fixed batch size, pass it with --batch-size N"


class DoesNotRun(RepairRefused):
    """TensorFlow cannot run the model on a batch."""


class Session:
    """Runs a program.

    Args:
        program: What to run.

    Raises:
        RepairRefused: TensorFlow cannot import its graph, or fill its tables.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sites = program.cut.sites
        self.graph = Graph(program.cut.proto)
        self.tf = tensorflow()
        tf_graph = self.tf.Graph()
        with tf_graph.as_default():
            definition = self.tf.compat.v1.GraphDef.FromString(program.cut.proto.SerializeToString())
            try:
                self.tf.import_graph_def(definition, name="")
            except (ValueError, self.tf.errors.OpError) as error:
                raise RepairRefused(
                    f"TensorFlow {self.tf.__version__} cannot import the model's graph: {error}"
                ) from error
        self.session = self.tf.compat.v1.Session(graph=tf_graph, config=self._config())
        self._set_variables()
        self._start()

    def _start(self) -> None:
        starters = [self.session.graph.get_operation_by_name(name) for name in self.program.cut.starters]
        try:
            self.session.run(starters)
        except self.tf.errors.OpError as error:
            raise RepairRefused(f"a lookup table of the model cannot be filled: {reason(error)}") from error

    def _config(self) -> Any:
        config = self.tf.compat.v1.ConfigProto()
        config.gpu_options.allow_growth = True  # the model may be in use beside us
        rewrite = config.graph_options.rewrite_options
        # Every level is a graph of its own, and optimising each costs more than it saves. NCHW convolutions run on a
        # CPU only after a change of layout, which is the optimiser's.
        layouts = {node.attr["data_format"].s for node in self.program.cut.proto.node if "data_format" in node.attr}
        if any(layout.startswith(b"NC") for layout in layouts):
            rewrite.cpu_layout_conversion = 1  # NCHW_TO_NHWC
        else:
            rewrite.disable_meta_optimizer = True
        return config

    def _set_variables(self) -> None:
        # A run costs milliseconds, however small the value; all values at once would lie in memory twice.
        assigns: list[str] = []
        feeds: dict[str, Array] = {}
        total = 0
        for node, (placeholder, assign) in self.program.cut.variables.items():
            assigns.append(assign)
            feeds[placeholder] = self.program.values.pop(node)()
            total += feeds[placeholder].nbytes
            if sum(value.nbytes for value in feeds.values()) > _ASSIGNED_TOGETHER or len(feeds) > 100:
                self.session.run(assigns, feeds)
                assigns, feeds = [], {}
        if assigns:
            self.session.run(assigns, feeds)
        _log.debug(
            "TensorFlow %s runs %d nodes with %d batch-norm sites; the values of its variables take %d bytes",
            self.tf.__version__,
            len(self.program.cut.proto.node),
            len(self.sites),
            total,
        )
        if total > _ASSIGNED_TOGETHER:
            # A Keras model that the values came from is made of cycles, and its memory serves the first runs.
            del feeds
            gc.collect()

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _run(self, fetches: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        # Left on, recent GPUs round what goes into a convolution to ten bits, and statistics are right to 1e-3 only.
        rounds = self.tf.config.experimental
        before = rounds.tensor_float_32_execution_enabled()
        rounds.enable_tensor_float_32_execution(False)
        try:
            values: list[Array] = self.session.run(list(fetches), {**self.program.feeds, **feeds})
        except self.tf.errors.OpError as error:
            node = getattr(error, "node_def", None)
            where = f"{node.op} {node.name}: " if node is not None else ""
            advice = "" if node is None or node.op not in _OF_SIZES else _OTHER_BATCHES
            raise DoesNotRun(f"TensorFlow cannot run the model: {where}{reason(error)}{advice}") from error
        except (TypeError, ValueError) as error:
            raise BadRequest(f"the model cannot be fed: {error}") from error
        finally:
            rounds.enable_tensor_float_32_execution(before)
        return values

    @cached_property
    def _unheld(self) -> frozenset[str]:
        """The tensors that no run can hand to another: lists and handles, which have no value outside of TensorFlow."""
        opaque = (self.tf.variant, self.tf.resource)
        operations = self.session.graph.get_operations()
        listed = {one.name for operation in operations for one in operation.outputs if one.dtype in opaque}
        return frozenset(listed | array_tensors(self.graph))
