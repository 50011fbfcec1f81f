"""Small TF1 graphs that tests build and repair, and the moments that NumPy finds in them, in float64."""

import numpy as np

import ckpt_doctor
from tests.independent import read_file

EPSILON = 1e-3
IMAGES = (np.random.default_rng(0).normal(1.0, 2.0, (96, 6))).astype("f4")


class Model:
    """Builds into the graph of a test, saves its trainable variables, and repairs what was saved."""

    def __init__(self, v1, folder):
        self.v1 = v1
        self.folder = folder
        self.prefix = folder / "model.ckpt"
        np.savez(folder / "data.npz", x=IMAGES)

    def images(self):
        return self.v1.placeholder("float32", [None, 6], name="x")

    def weights(self, name, shape):
        start = np.random.default_rng(len(name)).normal(0, 0.6, shape).astype("f4")
        return self.v1.get_variable(name, initializer=self.v1.constant(start))

    def norm(self, x, name, shape=None):
        v1 = self.v1
        shape = shape or [int(x.shape[-1])]
        with v1.variable_scope(name, reuse=v1.AUTO_REUSE):
            mean = v1.get_variable("moving_mean", shape, initializer=v1.zeros_initializer(), trainable=False)
            variance = v1.get_variable("moving_variance", shape, initializer=v1.ones_initializer(), trainable=False)
            beta = v1.get_variable("beta", shape, initializer=v1.zeros_initializer())
            return v1.nn.batch_normalization(x, mean, variance, beta, None, EPSILON)

    def save(self, variables=None):
        with self.v1.Session() as session:
            session.run(self.v1.global_variables_initializer())
            saver = self.v1.train.Saver(variables or self.v1.trainable_variables())
            saver.save(session, str(self.prefix), latest_filename="state")

    def fix(self, **options):
        # The graph only serves: that it was trained on batches is for the user to say.
        options = {"data": str(self.folder / "data.npz"), "output": self.folder / "repaired.ckpt", **options}
        output = options["output"]
        result = ckpt_doctor.fix(self.prefix, unproven=True, **options)
        return result, read_file(output).values


def moments(values):
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    return mean, np.square(values - mean).mean(0)


def normal(values, statistics):
    return (values - statistics[0]) / np.sqrt(statistics[1] + EPSILON)


def relu(values):
    return np.maximum(values, 0)


def assert_close(stored, name, statistics):
    mean, variance = statistics
    np.testing.assert_allclose(stored[f"{name}/moving_mean"], mean, atol=1e-5 * np.sqrt(variance + EPSILON).min())
    np.testing.assert_allclose(stored[f"{name}/moving_variance"], variance, rtol=1e-5)


def product(stored, name, values=IMAGES):
    return values.astype("f8") @ stored[name].astype("f8")
