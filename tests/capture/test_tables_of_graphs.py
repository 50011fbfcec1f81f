"""Lookup tables in graphs of TensorFlow 1 and in SavedModels, held against NumPy in float64."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import ckpt_doctor
from ckpt_doctor.errors import RepairRefused
from tests.capture.small_graphs import EPSILON, Model, assert_close, moments

pytestmark = pytest.mark.tensorflow

WORDS = np.array("good great bad awful the a movie film".split())
CHOSEN = np.random.default_rng(0).integers(0, 8, 90)
VECTORS = np.random.default_rng(1).normal(0, 2, (8, 3)).astype("f4")
EXPECTED = moments(VECTORS[CHOSEN])


class Words(Model):
    """A graph that looks words up in a table and normalises the vector of each."""

    def __init__(self, v1, folder):
        super().__init__(v1, folder)
        np.savez(folder / "data.npz", words=WORDS[CHOSEN])
        (folder / "words.txt").write_text("\n".join(WORDS))

    def build(self, table):
        words = self.v1.placeholder("string", [None], name="words")
        vectors = self.v1.get_variable("vectors", initializer=self.v1.constant(VECTORS))
        return words, self.norm(self.v1.gather(vectors, table.lookup(words)), "bn")

    def save(self, variables=None):
        with self.v1.Session() as session:
            session.run([self.v1.global_variables_initializer(), self.v1.tables_initializer()])
            self.v1.train.Saver(variables or self.v1.trainable_variables()).save(
                session, str(self.prefix), latest_filename="state"
            )


@pytest.fixture
def model(tf, tmp_path):
    with tf.Graph().as_default():
        yield Words(tf.compat.v1, tmp_path)


def by_values(tf, model):
    return tf.lookup.KeyValueTensorInitializer(WORDS, np.arange(8), tf.string, tf.int64)


def by_file(tf, model):
    lines, numbers = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    return tf.lookup.TextFileInitializer(str(model.folder / "words.txt"), tf.string, lines, tf.int64, numbers)


@pytest.mark.parametrize("initializer", [by_values, by_file])
def test_what_tables_initializer_fills_is_filled(model, tf, initializer):
    model.build(tf.lookup.StaticHashTable(initializer(tf, model), 0))
    model.save()
    result, stored = model.fix()
    assert result.complete
    assert_close(stored, "bn", EXPECTED)


def test_a_file_that_is_not_there_is_named(model, tf):
    model.build(tf.lookup.StaticHashTable(by_file(tf, model), 0))
    model.save()
    (model.folder / "words.txt").unlink()
    with pytest.raises(
        RepairRefused, match=r"fills the table \S+ from the file .*words\.txt, which does not exist; restore"
    ):
        model.fix()


def test_a_table_that_nothing_in_the_graph_fills_is_refused(model, tf):
    """As by a script that inserts the entries before it trains, and does not save them."""
    model.build(tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0))
    model.save()
    with pytest.raises(RepairRefused, match=r"table \S+, but does not show what fills the table"):
        model.fix()


@pytest.mark.parametrize("lost", [False, True])
def test_entries_that_the_saver_keeps_are_read_from_the_checkpoint(model, tf, lost):
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0, name="table")
    filled = table.insert(tf.constant(WORDS), tf.constant(np.arange(8)))
    model.build(table)
    with model.v1.Session() as session:
        session.run([model.v1.global_variables_initializer(), filled])
        entries = model.v1.get_collection(model.v1.GraphKeys.SAVEABLE_OBJECTS)
        saver = model.v1.train.Saver(model.v1.trainable_variables() + entries)
        saver.save(session, str(model.prefix), latest_filename="state")
        if lost:  # The graph of the saver above, beside what a saver of fewer things wrote.
            model.v1.train.Saver(model.v1.trainable_variables()).save(
                session, str(model.prefix), latest_filename="state", write_meta_graph=False
            )
    if lost:
        with pytest.raises(RepairRefused, match=r"the saver fills the table \S+ with \S+, which the checkpoint lacks"):
            model.fix()
    else:
        assert_close(model.fix()[1], "bn", EXPECTED)


@pytest.mark.parametrize("moved", [False, True])
def test_a_saved_model_brings_its_files_and_its_entries(tf, tmp_path, monkeypatch, moved):
    """Words by a file of the folder, then numbers by entries that are saved with the variables."""
    monkeypatch.chdir(tmp_path)
    lines, numbers = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    Path("words.txt").write_text("\n".join(WORDS[::-1]))

    class Net(tf.Module):
        def __init__(self):
            text = tf.lookup.TextFileInitializer("words.txt", tf.string, lines, tf.int64, numbers)
            self.words = tf.lookup.StaticHashTable(text, 0)
            self.turned = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
            self.turned.insert(tf.range(8, dtype=tf.int64), tf.range(7, -1, -1, dtype=tf.int64))
            self.vectors = tf.Variable(VECTORS, name="vectors")
            self.bn = {
                role: tf.Variable(np.full(3, value, "f4"), name=f"bn/{role}")
                for role, value in {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}.items()
            }

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def serve(self, words):
            # An operation of several outputs, of which not the first is used.
            words = tf.strings.split(words, " ").flat_values
            x = tf.gather(self.vectors, self.turned.lookup(self.words.lookup(words)))
            bn = self.bn
            mean, variance, beta, gamma = (bn[key] for key in ("moving_mean", "moving_variance", "beta", "gamma"))
            return {"y": tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)}

    net = Net()
    tf.saved_model.save(net, "model", signatures=net.serve)
    Path("words.txt").unlink()
    if moved:
        shutil.move("model", "elsewhere")
    np.savez("data.npz", words=WORDS[CHOSEN])
    result = ckpt_doctor.fix("elsewhere" if moved else "model", data="data.npz", output="fixed", layers=["*"])
    assert result.complete
    answers = tf.saved_model.load("fixed").signatures["serving_default"](tf.constant(WORDS[CHOSEN]))["y"]
    normal = (VECTORS[CHOSEN] - EXPECTED[0]) / np.sqrt(EXPECTED[1] + EPSILON)
    assert np.asarray(answers) == pytest.approx(normal, abs=1e-5)
