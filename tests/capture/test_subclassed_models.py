"""Subclassed models by a function: `scan` and `fix` agree, and the framework loads what was written.

Layers are attributes, in lists, dicts and tuples, and in a model inside the model; each format that holds weights only.
"""

import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")]

FEATURES = 6


def make(library, *, hold=list):
    """Return a net whose blocks are held in every way; `hold` is what holds those of its list."""
    layers = library.layers

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.fc = layers.Dense(FEATURES)
            self.norm = layers.BatchNormalization(momentum=0.9)

        def call(self, x, training=False):
            return self.norm(self.fc(x), training=training)

    class Net(library.Model):
        def __init__(self):
            super().__init__()
            self.first = Block()
            self.listed = hold([Block(), Block()])
            self.named = {"a": Block()} if hold is list else Block()
            self.paired = (Block(),)
            frozen = layers.Dense(FEATURES, trainable=False)
            norms = [layers.BatchNormalization(momentum=0.9) for _ in range(2)]
            self.inner = library.Sequential([frozen, norms[0], layers.Dense(FEATURES), norms[1]])
            self.head = layers.Dense(2)

        def blocks(self):
            named = self.named["a"] if hold is list else self.named
            return [self.first, *self.listed, named, *self.paired]

        def pairs(self):
            inner = self.inner.layers
            return [*((block.fc, block.norm) for block in self.blocks()), tuple(inner[:2]), tuple(inner[2:])]

        def call(self, x, training=False):
            for block in self.blocks():
                x = block(x, training=training)
            return self.head(self.inner(x, training=training))

    net = Net()
    net(np.zeros((2, FEATURES), np.float32))
    return net


def truth(net, data):
    """Return mean and variance of what each batch norm sees, with all the data as one batch, in float64."""
    found, x = [], data.astype(np.float64)
    for dense, norm in net.pairs():
        x = x @ np.asarray(dense.kernel, np.float64) + np.asarray(dense.bias, np.float64)
        found.append((x.mean(axis=0), x.var(axis=0)))
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
        x = x * np.asarray(norm.gamma, np.float64) + np.asarray(norm.beta, np.float64)
    return found


def without_statistics(path, library, save, monkeypatch):
    """Let the framework save a net, and leave the statistics out."""
    if path.endswith(".h5"):
        save()
        with h5py.File(path, "r+") as file:
            strip(file)
        return
    kind = library.layers.BatchNormalization
    children = kind._trackable_children

    def stripped(self, *arguments, **options):
        found = children(self, *arguments, **options)
        return {name: child for name, child in found.items() if not name.startswith("moving_")}

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_trackable_children", stripped)
        save()


def strip(file):
    """Delete the statistics of a file of Keras, and what lists them."""
    numbered = []

    def visit(place, item):
        if isinstance(item, h5py.Group) and len(item.attrs.get("weight_names", ())):
            names = [name if isinstance(name, str) else name.decode() for name in item.attrs["weight_names"]]
            for name in names:
                if "moving_" in name:
                    del item[name]
            item.attrs["weight_names"] = [name.encode() for name in names if "moving_" not in name]
        elif place.endswith("/vars") and len(item) == 4:
            numbered.append(place)

    file.visititems(visit)
    for place in numbered:
        del file[f"{place}/2"], file[f"{place}/3"]


def save_as(form, net, optimizer, path):
    import tensorflow as tf

    if form == "checkpoint":
        tf.train.Checkpoint(model=net, optimizer=optimizer).write(path)
    elif form in ("h5", "tf"):
        net.save_weights(path, save_format=form)
    else:
        net.save_weights(path)


def load_as(form, net, optimizer, path):
    import tensorflow as tf

    if form == "checkpoint":
        tf.train.Checkpoint(model=net, optimizer=optimizer).read(path).expect_partial()
    else:
        net.load_weights(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a function that makes a trained-looking net, what `--model` builds and data; a folder to work in."""
    monkeypatch.chdir(tmp_path)

    def prepared(library, hold, *, trained=True):
        library = pytest.importorskip(library)
        monkeypatch.setitem(sys.modules, "ours", SimpleNamespace(build=lambda: make(library, hold=hold)))
        rng = np.random.default_rng(0)
        net = make(library, hold=hold)
        for variable in net.trainable_variables:
            variable.assign(rng.normal(1 if "gamma" in variable.name else 0, 0.3, variable.shape))
        optimizer = library.optimizers.Adam()
        if trained:
            optimizer.build(net.trainable_variables)
        data = rng.normal(2, 3, (300, FEATURES)).astype(np.float32)
        np.save("x.npy", data)
        return library, net, optimizer, data

    return prepared


@pytest.mark.parametrize(
    ("library", "hold", "form", "missing"),
    [
        ("keras", list, "weights.h5", True),
        ("keras", tuple, "checkpoint", True),
        ("tf_keras", list, "weights.h5", True),
        ("tf_keras", list, "h5", True),
        ("tf_keras", list, "tf", True),
        ("tf_keras", list, "checkpoint", True),
        ("tf_keras", list, "checkpoint", False),
    ],
)
def test_what_scan_finds_fix_repairs(library, hold, form, missing, here, monkeypatch):
    # Only a checkpoint holds the optimizer, which takes longer to make than the net.
    trained = form == "checkpoint"
    library, net, optimizer, data = here(library, hold, trained=trained)
    path = {"weights.h5": "m.weights.h5", "h5": "m.h5"}.get(form, "m")
    if missing:
        without_statistics(path, library, lambda: save_as(form, net, optimizer, path), monkeypatch)
    else:
        save_as(form, net, optimizer, path)
    found = ckpt_doctor.scan(path, model="ours:build").checkpoints[0]
    assert len(found.batch_norm_layers) == 7
    assert {finding.rule for finding in found.findings} == ({"BN101", "BN102"} if missing else {"BN201"})
    assert not found.not_judged
    fixed = f"fixed_{path}"
    result = ckpt_doctor.fix(path, model="ours:build", data="x.npy", output=fixed, unproven=not missing)
    assert result.complete
    assert {layer.name for layer in result.layers} == {layer.name for layer in found.batch_norm_layers}
    again = make(library, hold=hold)
    restored = library.optimizers.Adam()
    if trained:
        restored.build(again.trainable_variables)
    load_as(form, again, restored, fixed)
    for (_, norm), (mean, variance) in zip(again.pairs(), truth(net, data), strict=True):
        assert np.asarray(norm.moving_mean) == pytest.approx(mean, abs=1e-5)
        assert np.asarray(norm.moving_variance) == pytest.approx(variance, rel=1e-4)
    # What is whole is silent, with the model and without.
    assert not ckpt_doctor.scan(fixed, model="ours:build").checkpoints[0].findings
    assert not ckpt_doctor.scan(fixed).checkpoints[0].findings


def test_what_keras_3_hides_from_tensorflow_is_found_and_left(here):
    """Of layers in a list, a checkpoint has what the optimizer trains: no restore would find their statistics."""
    _, net, optimizer, _ = here("keras", list)
    save_as("checkpoint", net, optimizer, "m")
    alone = ckpt_doctor.scan("m").checkpoints[0]
    hidden = [finding for finding in alone.findings if finding.rule == "BN101"]
    # Their slots bear the names that Keras made up: `net_block_1_batch_normalization_1`.
    assert len(hidden) == 3
    assert {finding.certainty for finding in hidden} == {"likely"}
    named = ckpt_doctor.scan("m", model="ours:build").checkpoints[0]
    assert {finding.layer for finding in named.findings if finding.rule == "BN101"} == {f.layer for f in hidden}
    # The statistics of the others are at their start, and are repaired where asked.
    result = ckpt_doctor.fix("m", model="ours:build", data="x.npy", output="fixed", unproven=True)
    assert len(result.layers) == 4
    assert {left.name for left in result.left} == {finding.layer for finding in hidden}
    assert all("TensorFlow would not restore what is written for it" in left.reason for left in result.left)


def test_weights_that_tensorflow_does_not_restore_are_not_measured(here):
    """TensorFlow's own check passes, and the kernels in the list would stay random."""
    import tensorflow as tf

    _, net, _, _ = here("keras", list)
    tf.train.Checkpoint(model=net).write("m")
    with pytest.raises(RepairRefused, match=r"\d+ of its \d+ weights are not in the file .* in a list or a dict"):
        ckpt_doctor.fix("m", model="ours:build", data="x.npy", output="fixed", unproven=True)
