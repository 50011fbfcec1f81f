"""Which signs of cold averages hold: on small nets that TensorFlow 1.15 trains, by the vectors alone.

    PYTHON_1_15 benchmarks/cold_averages.py make FILE FIRST LAST [DIGITS.npz]
    python benchmarks/cold_averages.py table FILE

`make` trains the nets of the seeds FIRST to LAST - 1 and pickles their statistics: healthy ones, cold ones after 20 to
160 steps, and healthy ones that were trained on with a slower decay, so that a counter which began then is not the
number of updates. A seed fixes everything about a net before it is trained. Half of the nets see handwritten digits
(`x` of shape `(n, 8, 8, 1)` and `y`, as in scikit-learn) where a file with them is named, the others made-up images.

`table` prints how often each sign is there.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np

CLASSES = 10
COLD_STEPS = (20, 40, 80, 160)
FINE_STEPS = (20, 60)
# What a counter is asked about healthy nets that have none: a remainder that is made up.
REMAINDERS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def images(random, digits):
    """Return inputs and labels, scaled in one of four ways."""
    if digits is not None and random.rand() < 0.5:
        x, y = digits
    else:
        template = random.randn(6, 8, 8, 3).astype("f4")
        y = random.randint(0, 6, 3000)
        x = 2 * template[y] + random.randn(3000, 8, 8, 3).astype("f4") * random.choice([1.0, 3.0])
    scale = random.choice(["unit", "standard", "raw", "shifted"])
    spread = x.max() - x.min()
    scaled = {
        "unit": (x - x.min()) / spread,
        "standard": (x - x.mean()) / x.std(),
        "raw": (x - x.min()) / spread * 255,
        "shifted": x + 5,
    }
    return scaled[scale].astype("f4"), y


class Net:
    """One net with batch norm written by hand, whose decay is fed."""

    def __init__(self, random, shape):
        import tensorflow as tf

        self.tf, self.random = tf, random
        self.depth = random.randint(1, 6)
        self.activation = {"relu": tf.nn.relu, "tanh": tf.nn.tanh, "elu": tf.nn.elu}[
            random.choice(["relu", "relu", "tanh", "elu"])
        ]
        self.start = {
            "glorot": tf.initializers.glorot_uniform(),
            "he": tf.initializers.he_normal(),
            "lecun": tf.initializers.lecun_normal(),
            "normal": tf.initializers.truncated_normal(stddev=0.05),
        }[random.choice(["glorot", "he", "lecun", "normal"])]
        kind = random.choice(["conv", "dense", "pre", "residual"])
        optimizer = random.choice(["adam", "momentum", "rms"])
        self.bias = random.rand() < 0.5
        l2 = random.choice([0.0, 0.0, 1e-3])
        input_norm = random.rand() < 0.15
        self.mode = random.choice(["healthy", "cold", "fine"], p=[0.45, 0.25, 0.3])
        decays = {"healthy": [0.9, 0.95, 0.97], "cold": [0.99, 0.995, 0.997, 0.999], "fine": [0.9, 0.95]}
        self.decay = random.choice(decays[self.mode])
        self.fed_decay = tf.placeholder(tf.float32, [])
        self.x, self.y = tf.placeholder("float32", (None, *shape)), tf.placeholder("int64", [None])
        self.statistics, self.updates = [], []
        h = self.norm(self.x) if input_norm else self.x
        h = getattr(self, kind)(h)
        pooled = len(h.shape) == 4 and random.rand() < 0.5
        logits = tf.layers.dense(tf.reduce_mean(h, [1, 2]) if pooled else tf.layers.flatten(h), CLASSES)
        loss = tf.losses.sparse_softmax_cross_entropy(self.y, logits)
        if l2:
            loss += l2 * tf.add_n([tf.nn.l2_loss(one) for one in tf.trainable_variables() if "kernel" in one.name])
        self.step = {
            "adam": tf.train.AdamOptimizer(2e-3),
            "momentum": tf.train.MomentumOptimizer(0.01, 0.9),
            "rms": tf.train.RMSPropOptimizer(1e-3),
        }[optimizer].minimize(loss)
        self.batch = int(random.choice([16, 32, 64]))

    def norm(self, h):
        """Normalise with the moments of the batch, and average them."""
        tf, name, channels = self.tf, f"bn{len(self.statistics)}", int(h.shape[-1])
        mean = tf.get_variable(f"{name}/mm", [channels], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable(f"{name}/mv", [channels], initializer=tf.ones_initializer(), trainable=False)
        gamma = tf.get_variable(f"{name}/g", [channels], initializer=tf.ones_initializer())
        beta = tf.get_variable(f"{name}/b", [channels], initializer=tf.zeros_initializer())
        moments = tf.nn.moments(h, list(range(len(h.shape) - 1)))
        for own, new in zip((mean, variance), moments):  # noqa: B905 - Python 3.7 runs this
            self.updates.append(own.assign_sub((own - new) * (1 - self.fed_decay)))
        self.statistics.append((mean, variance))
        return tf.nn.batch_normalization(h, *moments, beta, gamma, 1e-3)

    def width(self):
        """Return a number of channels."""
        return int(self.random.choice([8, 12, 16, 24, 32]))

    def linear(self, h, width):
        """Return a convolution, or a dense layer of vectors."""
        options = {"use_bias": self.bias, "kernel_initializer": self.start}
        if len(h.shape) == 2:
            return self.tf.layers.dense(h, width, **options)
        return self.tf.layers.conv2d(h, width, 3, padding="same", **options)

    def dense(self, h):
        """Dense layers."""
        h = self.tf.layers.flatten(h)
        for _ in range(self.depth):
            h = self.activation(self.norm(self.linear(h, self.width())))
        return h

    def pre(self, h):
        """Normalise before the convolution."""
        h = self.linear(h, self.width())
        for _ in range(self.depth):
            h = self.linear(self.activation(self.norm(h)), self.width())
        return h

    def residual(self, h):
        """Add each block to its input."""
        width = self.width()
        h = self.linear(h, width)
        for _ in range(self.depth):
            h = h + self.activation(self.norm(self.linear(h, width)))
        return h

    def conv(self, h):
        """Convolutions."""
        for number in range(self.depth):
            h = self.activation(self.norm(self.linear(h, self.width())))
            if number == 1:
                h = self.tf.layers.max_pooling2d(h, 2, 2)
        return h


def trained(seed, digits):
    """Return what was saved of one net: rows with its statistics."""
    import tensorflow as tf

    random = np.random.RandomState(seed)
    tf.reset_default_graph()
    tf.set_random_seed(seed)
    x, y = images(random, digits)
    net = Net(random, x.shape[1:])
    rows = []
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())

        def train(steps, decay):
            for _ in range(steps):
                batch = random.randint(0, len(x), net.batch)
                session.run([net.step, net.updates], {net.x: x[batch], net.y: y[batch], net.fed_decay: decay})

        def save(what, steps, decay):
            rows.append(
                {"seed": seed, "what": what, "steps": steps, "decay": decay, "stats": session.run(net.statistics)}
            )

        if net.mode == "healthy":
            steps = int(random.choice([150, 300, 600]))
            train(steps, net.decay)
            save("healthy", steps, net.decay)
        elif net.mode == "cold":
            for before, steps in zip((0, *COLD_STEPS), COLD_STEPS):  # noqa: B905 - Python 3.7 runs this
                train(steps - before, net.decay)
                save("cold", steps, net.decay)
        else:
            train(300, net.decay)
            save("healthy", 300, net.decay)
            slower = random.choice([0.99, 0.997, 0.999])
            for before, steps in zip((0, *FINE_STEPS), FINE_STEPS):  # noqa: B905 - Python 3.7 runs this
                train(steps - before, slower)
                save("fine", steps, slower)
    return rows


def make(path, first, last, digits):
    """Train the nets and pickle what they hold."""
    known = None
    if digits is not None:
        with np.load(digits) as archive:
            known = archive["x"], archive["y"]
    rows = [row for seed in range(first, last) for row in trained(seed, known)]
    Path(path).write_bytes(pickle.dumps(rows, protocol=2))


def table(path):
    """Print how often the signs are there."""
    from dataclasses import replace

    from ckpt_doctor.batchnorm import Inventory
    from ckpt_doctor.heuristics.initial_value_share import InitialValueShares
    from ckpt_doctor.rules._examples import described, example

    def shares(row, decay, steps):
        layers = [
            replace(
                example(str(number), facts=replace(described(), counted=True), moving_mean=mean,
                        moving_variance=variance, channels=mean.size),
                momentum=decay,
            )
            for number, (mean, variance) in enumerate(row["stats"])
        ]  # fmt: skip
        found = InitialValueShares(Inventory(tuple(layers), steps=steps))
        cold = [one for one in map(found.of, layers) if one is not None]
        return cold[0].certainty if cold else "none"

    rows = pickle.loads(Path(path).read_bytes())
    rows = [row for row in rows if all(np.isfinite(one).all() for pair in row["stats"] for one in pair)]
    cold = {True: "cold, more than half left", False: "cold, less"}
    groups = {"healthy": [], "fine": [], cold[True]: [], cold[False]: []}
    for row in rows:
        groups[row["what"] if row["what"] in groups else cold[row["decay"] ** row["steps"] > 0.5]].append(row)
    print("| files | nets | with a floor, no counter | by their own counter |\n|---|---|---|---|")
    for name, members in groups.items():
        floors = sum(shares(row, None, None) != "none" for row in members)
        own = Counter(shares(row, row["decay"], row["steps"]) for row in members)
        nets = len({row["seed"] for row in members})
        print(f"| {len(members)} {name} | {nets} | {floors} | {', '.join(f'{n} {what}' for what, n in own.items())} |")
    print("\n| healthy files against a made-up remainder | proven | likely | none |\n|---|---|---|---|")
    for remainder in REMAINDERS:
        own = Counter(shares(row, remainder, 1) for row in groups["healthy"])
        print(f"| {remainder:g} | {own['proven']} | {own['likely']} | {own['none']} |")


if __name__ == "__main__":
    command, file, *rest = sys.argv[1:]
    if command == "make":
        make(file, int(rest[0]), int(rest[1]), rest[2] if len(rest) > 2 else None)
    else:
        table(file)
