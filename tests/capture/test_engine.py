"""The engine on real graphs: how often operations run, what it holds meanwhile, and what it makes of bad values."""

from collections import Counter

import numpy as np
import pytest

from ckpt_doctor.capture.live import LiveTensors
from ckpt_doctor.cli import main
from tests.catalogue import BY_NAME, DATA
from tests.independent import read_file, write_bundle

pytestmark = pytest.mark.tensorflow

LAYERS = "tf1_layers/trainable/model.ckpt-400"
HANDWRITTEN = "tf1_handwritten/trainable/model.ckpt-400"


class Trace:
    """Counts how often TensorFlow ran each node of an engine's graph, as its own tracer reports it."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.runs = 0
        self.graph = None
        self.sites = ()

    def __call__(self, engine) -> None:
        self.graph = engine.session.graph
        self.sites = engine.sites
        run = engine.session.run

        import tensorflow as tf

        def traced(fetches, feeds):
            options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
            metadata = tf.compat.v1.RunMetadata()
            values = run(fetches, feeds, options=options, run_metadata=metadata)
            self.runs += 1
            self.ran.update(
                {node.node_name.partition(":")[0] for dev in metadata.step_stats.dev_stats for node in dev.node_stats}
            )
            return values

        engine.session.run = traced

    def model_operations(self) -> list[str]:
        """Return the operations that the last site's input needs and that depend on the data."""
        depends: set[str] = set()
        for operation in self.graph.get_operations():  # in the order of their making: inputs first
            sources = {tensor.op.name for tensor in operation.inputs}
            if operation.name == "images" or sources & depends:
                depends.add(operation.name)
        wanted: set[str] = set()
        stack = [self.graph.get_tensor_by_name(site.x).op for site in self.sites]
        while stack:
            operation = stack.pop()
            if operation.name not in wanted:
                wanted.add(operation.name)
                stack += [tensor.op for tensor in operation.inputs]
        # oneDNN runs a convolution and the bias after it as one, under the name of the bias.
        fused = {
            tensor.op.name
            for name in depends & wanted
            for tensor in self.graph.get_operation_by_name(name).inputs[:1]
            if self.graph.get_operation_by_name(name).type == "BiasAdd"
        }
        return sorted((depends & wanted) - {"images"} - fused)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", [LAYERS, HANDWRITTEN, "tf1_training_only/trainable/model.ckpt-600"])
def test_every_operation_runs_once_for_each_batch(measured, name, whole):
    trace = Trace()
    measured(name, whole=whole, count=150, batch_size=64, watch=trace)
    assert trace.runs == 3 * 4  # batches times levels: four sites in a chain
    operations = trace.model_operations()
    assert sum(trace.graph.get_operation_by_name(op).type in ("Conv2D", "MatMul", "BiasAdd") for op in operations) == 4
    assert {op: trace.ran[op] for op in operations} == dict.fromkeys(operations, 3)


def test_the_count_can_fail(measured):
    """A plan that feeds nothing on would run the first convolution in every level."""
    trace = Trace()

    def forgetful(engine):
        trace(engine)
        run = engine.session.run
        known = {}

        def run_from_the_start(fetches, feeds):
            kept = ("images:0", "ckpt_doctor")
            known.update({tensor: value for tensor, value in feeds.items() if tensor.startswith(kept)})
            return run(fetches, known)

        engine.session.run = run_from_the_start

    measured(LAYERS, whole=True, count=64, watch=forgetful)
    assert trace.ran["conv1/Conv2D"] == 4


def test_live_tensors_are_dropped_when_nothing_reads_them(measured, monkeypatch):
    held = []
    put, leave = LiveTensors.put, LiveTensors.__exit__

    def watched_put(self, *args, **options):
        put(self, *args, **options)
        held.append(self.held)

    def watched_leave(self, *args):
        held.append(self.held)
        leave(self, *args)

    monkeypatch.setattr(LiveTensors, "put", watched_put)
    monkeypatch.setattr(LiveTensors, "__exit__", watched_leave)
    measured(LAYERS, whole=True)
    assert max(held) > 0
    assert held[-1] == 0
    # One batch of four at a time, in training mode: a quarter of what the whole data need.
    most = max(held)
    held.clear()
    measured(LAYERS, whole=False)
    assert held[-1] == 0
    assert max(held) <= most / 4


@pytest.mark.parametrize("limit", [0, 100_000])
def test_live_tensors_on_disk_give_the_same_bits(measured, monkeypatch, tmp_path, limit):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spilled = []
    leave = LiveTensors.__exit__

    def watched_leave(self, *args):
        spilled.append((self.spilled, any(tmp_path.rglob("*"))))
        leave(self, *args)

    monkeypatch.setattr(LiveTensors, "__exit__", watched_leave)
    expected = measured(LAYERS, whole=True)
    found = measured(LAYERS, whole=True, cache_memory=limit)
    (none, _), (some, on_disk) = spilled
    assert none == 0
    assert some > 0
    assert on_disk
    assert not any(tmp_path.iterdir())
    for layer, seen in expected.items():
        assert found[layer].mean.tobytes() == seen.mean.tobytes()
        assert found[layer].variance.tobytes() == seen.variance.tobytes()


def test_what_is_kept_is_a_copy_where_room_is_short_and_what_lies_beside_it_counts():
    with LiveTensors(limit=3 * 10**6) as live:
        value = np.arange(250_000, dtype=np.float32).reshape(500, 500)
        live.put(0, "roomy", value)
        assert live.get(0, "roomy") is value
        live.drop(0, "roomy")
        live.put(0, "first of two", value, to_come=1)
        live.put(0, "second", value, beside=10**6)
        assert (live.held, live.spilled) == (2 * 10**6, 0)
        live.put(0, "on disk", value, beside=1)
        assert (live.held, live.spilled) == (2 * 10**6, 10**6)
        value[:] = 0
        for tensor in ("first of two", "second", "on disk"):
            assert live.get(0, tensor)[499, 499] == 249_999


def test_files_of_what_was_dropped_are_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    random = np.random.default_rng(0)
    with LiveTensors(limit=0) as live:
        for batch, size in enumerate((1000, 10, 3000, 0, 500)):
            kept = {name: random.random((size, 2), np.float32)[::2] for name in "ab"}
            for name, value in kept.items():
                live.put(batch, name, value)
            live.drop(batch - 1, "a")
            live.drop(batch - 1, "b")
            for name, value in kept.items():
                np.testing.assert_array_equal(live.get(batch, name), value)
        # But for the lock of the folder.
        assert len([path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]) == 4
    assert not any(tmp_path.iterdir())


def test_gpus_do_not_round_to_tensor_float_32_meanwhile(measured):
    """What only GPUs obey can be seen, not felt, without one."""
    import tensorflow as tf

    asked = tf.config.experimental.tensor_float_32_execution_enabled
    seen = []

    def watch(engine):
        run = engine.session.run

        def watched(*args):
            seen.append(asked())
            return run(*args)

        engine.session.run = watched

    assert asked()
    measured(LAYERS, whole=True, watch=watch)
    assert set(seen) == {False}
    assert asked()


def test_the_engine_does_not_keep_the_model_that_the_values_came_from(model):
    from ckpt_doctor.capture.engine import Engine

    program, _ = model(LAYERS)
    values = len(program.values)
    assert values > 0
    with Engine(program, {}):
        assert not program.values


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_kept_of_single_batches_does_not_grow_with_the_data(measured, whole):
    few = measured(LAYERS, whole=whole, count=512, batch_size=8)
    many = measured(LAYERS, whole=whole, count=512, batch_size=4)
    for layer, seen in few.items():
        # 64 batches of 8, and 128 of 4 in pairs: the pairs are the same samples.
        assert seen.batches == many[layer].batches == 64
        if whole:
            np.testing.assert_allclose(seen.batch_means, many[layer].batch_means, rtol=1e-4, atol=1e-5)


def test_a_plain_pass_holds_no_more_than_the_memory_it_was_given(model, images, monkeypatch):
    from ckpt_doctor.capture import engine as module
    from ckpt_doctor.capture.engine import Engine
    from ckpt_doctor.capture.samples import from_arrays

    monkeypatch.setattr(module, "_ALWAYS_ROOM", 0)
    program, names = model(LAYERS)
    fetched = []
    samples = from_arrays({"images:0": images}, range(64), 64)
    with Engine(program, {}, cache_memory=200_000) as engine:
        found, _ = engine.measure(samples, names, whole=True)
        engine.stored = {layer: (seen.mean, seen.variance) for layer, seen in found.items()}
        run = engine._run

        def watched(*args):
            values = run(*args)
            fetched.append(sum(value.nbytes for value in values))
            return values

        engine._run = watched
        small = engine.observe(samples)
        engine.cache_memory = 10**9
        large = engine.observe(samples)
    assert max(fetched[:-2]) <= 200_000 < fetched[-1]
    for layer, seen in large.items():
        np.testing.assert_allclose(small[layer].mean, seen.mean, rtol=1e-5, atol=1e-6)


def test_progress_counts_every_run_to_the_end(model, images):
    from ckpt_doctor.capture.engine import Engine
    from ckpt_doctor.capture.samples import from_arrays

    program, names = model(LAYERS)
    heard = []
    with Engine(program, {}) as engine:
        samples = from_arrays({"images:0": images}, range(150), 64)
        engine.measure(samples, names, whole=True, progress=heard.append)
    assert [(step.done, step.total) for step in heard] == [(number, 12) for number in range(1, 13)]


def test_an_activation_that_is_no_number_names_layer_and_batch(tmp_path, capsys):
    values = dict(read_file(BY_NAME[LAYERS].path).values)
    kernel = values["conv2/kernel"].copy()
    kernel[..., 3] = np.inf
    write_bundle(tmp_path / "model", values | {"conv2/kernel": kernel}, meta_of=BY_NAME[LAYERS].path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["fix", str(tmp_path / "model"), "--data", DATA, "--output", str(tmp_path / "out")]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("ckpt-doctor: layer bn2, batch 1: 1 of 12 channels hold NaN or infinite values in ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
