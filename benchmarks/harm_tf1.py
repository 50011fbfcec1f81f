"""Trains the TensorFlow 1.15 nets of `harm.py`, saves them, and says how well a file serves.

Run by `harm.py` only, under Python 3.7 with tensorflow==1.15.5: ``python harm_tf1.py train FOLDER < RECIPES`` writes
files and labels; ``python harm_tf1.py judge FOLDER < QUESTIONS`` answers each line, a JSON object with ``recipe``,
``format`` and ``path``, with a line ``{"accuracy": ...}``.
"""

import json
import os
import sys
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.python.training import moving_averages

tf.logging.set_verbosity(tf.logging.ERROR)
slim = tf.contrib.layers

INPUTS = {"flat": (20,), "image": (8, 8, 3), "sequence": (6, 10)}
# What a low rate is, for training on.
LOW = 0.1
EPSILON = 1e-3
# Ways whose layers come from one library, whatever the recipe says.
LIBRARIES = {
    "zero_debiased_by_hand": "by_hand", "zero_debiased_slim": "slim", "renorm": "layers", "flag_variable": "by_hand",
    "layers_without_training": "layers", "slim_false": "slim", "by_hand_stored": "by_hand",
    "slim_without_update_ops": "slim", "decay_one": "layers", "by_hand_without_updates": "by_hand",
    "cold_variance_slim": "slim", "saver_of_trainable_stored": "layers", "shared": "layers",
    "no_update_ops": "layers", "constant_false": "layers", "placeholder_without_update_ops": "layers",
}  # fmt: skip
WITHOUT_UPDATE_OPS = (
    "no_update_ops", "placeholder_without_update_ops", "slim_without_update_ops", "by_hand_without_updates"
)  # fmt: skip
MISSING = ("saver_of_trainable", "saver_of_trainable_stored")


class Net:
    """One recipe as a graph.

    Args:
        recipe: See `harm_recipes`.
        serving: Whether the graph only serves.
    """

    def __init__(self, recipe, serving):
        self.recipe, self.serving, self.way = recipe, serving, recipe["way"]
        self.library = LIBRARIES.get(self.way, recipe["library"])
        self.count = 0
        self.penalty = 1e-3 if recipe["optimizer"].endswith("_l2") else 0.0
        self.x = tf.placeholder(tf.float32, (None,) + INPUTS[recipe["input"]], name="x")
        self.training = False if serving else self._switch()
        features = getattr(self, recipe["architecture"])(self.x)
        self.logits = tf.identity(tf.layers.dense(features, 8, name="head"), name="logits")

    def _switch(self):
        """Return what says whether the graph trains; the feed that training gives is in `feed`."""
        self.feed = {}
        if self.way in ("placeholder_false", "placeholder_without_update_ops", "fine_tuned_in_inference_mode"):
            switch = tf.placeholder(tf.bool, (), name="is_training")
            self.feed = {switch: self.way != "placeholder_false"}
            return switch
        if self.way == "default_false":
            return tf.placeholder_with_default(False, (), name="is_training")
        if self.way == "flag_variable":
            return tf.get_variable(
                "is_training", (), tf.bool, initializer=tf.constant_initializer(False), trainable=False
            )
        return self.way not in (
            "layers_without_training", "slim_false", "constant_false", "by_hand_stored", "saver_of_trainable_stored"
        )  # fmt: skip

    def norm(self, x, rectify=True, name=None):
        """Normalise, and by default rectify."""
        number = self.count
        if name is None:
            self.count += 1
        name = name or "bn%d" % number
        training = False if self.way == "first_layer_on_0_1" and number == 0 else self.training
        momentum = 1.0 if self.way == "decay_one" else self.recipe["momentum"]
        scale = self.recipe["scale"]
        if self.library == "layers":
            options = {}
            if self.way == "renorm" and not self.serving:
                options = {"renorm": True, "renorm_momentum": momentum}
            if self.way not in ("layers_without_training", "saver_of_trainable_stored"):
                options["training"] = training
            x = tf.layers.batch_normalization(
                x, momentum=momentum, scale=scale, epsilon=EPSILON, name=name, reuse=tf.AUTO_REUSE, **options
            )
        elif self.library == "slim":
            debiased = self.way in ("zero_debiased_slim", "cold_variance_slim")
            x = slim.batch_norm(
                x, decay=momentum, scale=scale, epsilon=EPSILON, is_training=training, scope=name,
                zero_debias_moving_mean=debiased,
            )  # fmt: skip
        else:
            x = self._by_hand(x, momentum, scale, training, name)
        return tf.nn.relu(x) if rectify else x

    def _by_hand(self, x, momentum, scale, training, name):
        """Return a batch norm as tutorials write it."""
        width = [int(x.shape[-1])]
        with tf.variable_scope(name):
            beta = tf.get_variable("beta", width, initializer=tf.zeros_initializer())
            gamma = tf.get_variable("gamma", width, initializer=tf.ones_initializer()) if scale else None
            stored = [
                tf.get_variable(role, width, initializer=tf.constant_initializer(value), trainable=False)
                for role, value in (("moving_mean", 0.0), ("moving_variance", 1.0))
            ]

            def with_batch():
                moments = tf.nn.moments(x, list(range(len(x.shape) - 1)))
                if self.way == "by_hand_without_updates":
                    return tuple(moments)
                updates = [
                    moving_averages.assign_moving_average(
                        variable, value, momentum, zero_debias=self.way == "zero_debiased_by_hand"
                    )
                    if self.way == "zero_debiased_by_hand"
                    else tf.assign_sub(variable, (1 - momentum) * (variable - value))
                    for variable, value in zip(stored, moments)
                ]
                if not isinstance(training, bool):
                    with tf.control_dependencies(updates):
                        return tuple(tf.identity(value) for value in moments)
                for update in updates:
                    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
                return tuple(moments)

            def with_stored():
                return tuple(variable.read_value() for variable in stored)

            if isinstance(training, bool):
                mean, variance = with_batch() if training else stored
            else:
                mean, variance = tf.cond(training, with_batch, with_stored)
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)

    def linear(self, x, name, make, *arguments, **options):
        """Apply a linear layer of `tf.layers`."""
        regulariser = slim.l2_regularizer(self.penalty) if self.penalty else None
        return make(
            x, *arguments, use_bias=self.recipe["has_bias"], kernel_regularizer=regulariser, name=name,
            reuse=tf.AUTO_REUSE, **options
        )  # fmt: skip

    def dense(self, x):
        for number in range(3):
            x = self.norm(self.linear(x, "linear%d" % number, tf.layers.dense, 24))
        return x

    def convolution(self, x):
        for number, (width, stride) in enumerate(((8, 1), (12, 2), (12, 1))):
            name = "linear%d" % number
            x = self.norm(self.linear(x, name, tf.layers.conv2d, width, 3, strides=stride, padding="same"))
        return tf.layers.flatten(x)

    def depthwise(self, x):
        x = self.norm(self.linear(x, "linear0", tf.layers.conv2d, 12, 3, padding="same"))
        with tf.variable_scope("linear1"):
            kernel = tf.get_variable("depthwise_kernel", (3, 3, 12, 1))
            branch = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
            if self.recipe["has_bias"]:
                branch = tf.nn.bias_add(branch, tf.get_variable("bias", [12], initializer=tf.zeros_initializer()))
        branch = self.norm(branch)
        branch = self.norm(self.linear(branch, "linear2", tf.layers.conv2d, 12, 1), rectify=False)
        return tf.layers.flatten(tf.layers.average_pooling2d(tf.nn.relu(x + branch), 2, 2))

    def transposed(self, x):
        x = self.norm(self.linear(x, "linear0", tf.layers.conv2d, 12, 3, strides=2, padding="same"))
        x = self.linear(x, "linear1", tf.layers.conv2d_transpose, 8, 3, strides=2, padding="same")
        return tf.layers.flatten(tf.layers.average_pooling2d(self.norm(x), 2, 2))

    def shared(self, x):
        parts = [self.norm(self.linear(x[:, step], "linear0", tf.layers.dense, 16), name="bn0") for step in range(3)]
        self.count = 1
        return self.norm(self.linear(tf.concat(parts, 1), "linear1", tf.layers.dense, 24))

    def train_op(self, step):
        """Add loss and optimizer; return labels, rate and the training op."""
        labels = tf.placeholder(tf.int64, (None,), name="labels")
        loss = tf.losses.sparse_softmax_cross_entropy(labels, self.logits) + tf.losses.get_regularization_loss()
        rate = tf.placeholder_with_default(1.0, (), name="rate")
        optimizer = optimizer_of(self.recipe, rate)
        gradients = optimizer.compute_gradients(loss)
        if self.recipe["optimizer"] in ("sgd", "momentum", "momentum_l2"):
            clipped, _ = tf.clip_by_global_norm([gradient for gradient, _ in gradients], 1.0)
            gradients = [(gradient, variable) for gradient, (_, variable) in zip(clipped, gradients)]
        updates = [] if self.way in WITHOUT_UPDATE_OPS else tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.control_dependencies(updates):
            op = optimizer.apply_gradients(gradients, global_step=step)
        if self.way == "ema_shadows":
            averages = tf.train.ExponentialMovingAverage(0.97)
            with tf.control_dependencies([op]):
                op = averages.apply(tf.trainable_variables())
        return labels, rate, op


def optimizer_of(recipe, rate):
    """Return the optimizer of a recipe."""
    return {
        "adam": lambda: tf.train.AdamOptimizer(3e-3 * rate),
        "adam_l2": lambda: tf.train.AdamOptimizer(3e-3 * rate),
        "adamw": lambda: tf.contrib.opt.AdamWOptimizer(1e-4, 3e-3 * rate),
        "rmsprop": lambda: tf.train.RMSPropOptimizer(2e-3 * rate),
        "sgd": lambda: tf.train.GradientDescentOptimizer(0.1 * rate),
        "momentum": lambda: tf.train.MomentumOptimizer(0.03 * rate, 0.9),
        "momentum_l2": lambda: tf.train.MomentumOptimizer(0.03 * rate, 0.9, use_nesterov=True),
        "adagrad": lambda: tf.train.AdagradOptimizer(5e-2 * rate),
    }[recipe["optimizer"]]()


def session_of(graph):
    """Return a session that leaves the other processor alone."""
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    return tf.Session(graph=graph, config=config)


def accuracy(session, x, logits, test, feed=()):
    """Return the share of the test inputs whose class is named."""
    answers = [
        session.run(logits, {**dict(feed), x: test["x"][start : start + 500]})
        for start in range(0, len(test["x"]), 500)
    ]
    return float(np.mean(np.concatenate(answers).argmax(-1) == test["y"]))


def serve(recipe, values, folder, formats, test):
    """Build the graph that only serves with values; return its accuracy, and save what serving needs."""
    with tf.Graph().as_default() as graph, session_of(graph) as session:
        net = Net(recipe, serving=True)
        session.run(tf.global_variables_initializer())
        for variable in tf.global_variables():
            if variable.op.name in values:
                variable.load(values[variable.op.name], session)
        found = accuracy(session, net.x, net.logits, test)
        if folder is not None:
            tf.train.export_meta_graph(os.path.join(folder, "serve.meta"), saver_def=tf.train.Saver().saver_def)
            if "saved_model" in formats:
                tf.saved_model.simple_save(
                    session, os.path.join(folder, "saved_model"), {"x": net.x}, {"logits": net.logits}
                )
    return found


def make(recipe, data, folder):
    """Train and save one net; return a label for each file."""
    started = time.time()
    train, test = (np.load(os.path.join(data, "%s-%s.npz" % (recipe["input"], part))) for part in ("train", "test"))
    x, y = train["x"], train["y"]
    random = np.random.RandomState(recipe["seed"])
    way = recipe["way"]
    with tf.Graph().as_default() as graph, session_of(graph) as session:
        tf.set_random_seed(recipe["seed"])
        step = tf.train.get_or_create_global_step()
        net = Net(recipe, serving=False)
        labels, rate, op = net.train_op(step)
        session.run(tf.global_variables_initializer())

        def go(steps, speed=1.0, feed=None):
            for _ in range(steps):
                chosen = random.randint(0, len(x), recipe["batch_size"])
                fed = {net.x: x[chosen], labels: y[chosen], rate: speed}
                fed.update(net.feed if feed is None else feed)
                session.run(op, fed)

        go(recipe["steps"])
        if way == "warm_started":
            # The counter and the slots begin anew, as with `warm_start_from`.
            weights = [variable for variable in tf.global_variables() if _is_model(variable.op.name)]
            kept = session.run(weights)
            session.run(tf.global_variables_initializer())
            for variable, value in zip(weights, kept):
                variable.load(value, session)
            go(60, LOW)
        elif way == "fine_tuned_in_inference_mode":
            go(60, LOW, dict.fromkeys(net.feed, False))
        elif way in ("statistics_reset", "trainable_restored_then_saved"):
            initial = [
                variable
                for variable in tf.global_variables()
                if variable not in tf.trainable_variables()
                and (way == "trainable_restored_then_saved" or "moving_" in variable.op.name)
            ]
            session.run(tf.variables_initializer(initial))
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        values = session.run(variables)
        saved = tf.trainable_variables() if way in MISSING else tf.global_variables()
        formats = recipe["formats"] if way not in MISSING else ["bundle", "bundle_bare"]
        paths = {}
        for name in formats:
            if name == "saved_model":
                paths[name] = "saved_model"
                continue
            os.makedirs(os.path.join(folder, name), exist_ok=True)
            version = tf.train.SaverDef.V1 if name == "v1" else tf.train.SaverDef.V2
            saver = tf.train.Saver(saved, write_version=version)
            saver.save(
                session,
                os.path.join(folder, name, "model.ckpt"),
                global_step=step,
                write_meta_graph=name != "bundle_bare",
            )
            paths[name] = "%s/model.ckpt-%d" % (name, session.run(step))
        feed = dict(net.feed)
        training_accuracy = accuracy(session, net.x, net.logits, test, dict.fromkeys(feed, True))
    served = {name: values[name] for name in values if way not in MISSING or "moving_" not in name}
    found = serve(recipe, served, folder, recipe["formats"], test)
    finite = all(np.all(np.isfinite(value)) for name, value in values.items() if value.dtype.kind == "f")
    return [
        label_of(recipe, name, paths[name], values, found, training_accuracy, finite, folder, time.time() - started)
        for name in formats
    ]


def _is_model(name):
    """Return whether a variable belongs to the model, and not to an optimizer or the counter."""
    return name.split("/")[-1] in (
        "kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "depthwise_kernel"
    )  # fmt: skip


def label_of(recipe, name, path, values, found, training_accuracy, finite, folder, seconds):
    """Return the label of one file."""
    net = recipe["net"]
    layers = []
    for number in range(8):
        scope = "bn%d" % number
        if scope + "/beta" not in values:
            break
        on_0_1 = recipe["batch_layers"] is not None and number == 0
        mixed = recipe["batch_layers"] is not None
        layer = {
            "name": scope,
            "kernel_bias": recipe["has_bias"],
            "trained_on": ("stored" if on_0_1 else "batch") if mixed else recipe["trained_on"],
            "truth": "healthy" if on_0_1 else recipe["truth"],
        }
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            value = values.get("%s/%s" % (scope, role))
            layer[role] = None if value is None else value.astype(float).tolist()
        layers.append(layer)
    label = {key: value for key, value in recipe.items() if key not in ("formats", "batch_layers")}
    label.update(
        {
            "format": name,
            "file": "nets/%s/%s" % (net, path),
            "unsaved": None,
            "truth": recipe["truth"] if finite else "unknown",
            "finite": bool(finite),
            "has_slots": name != "saved_model" and recipe["way"] not in MISSING and recipe["optimizer"] != "sgd"
            and recipe["way"] != "trainable_restored_then_saved",
            "initial_share": recipe["momentum"] ** recipe["steps"] if recipe["group"] == "cold" else 0.0,
            "statistics": "missing" if recipe["way"] in MISSING else "stored",
            "layers": layers,
            "accuracy": found,
            "training_accuracy": training_accuracy,
            "metric": "share of right classes",
            "data": "data/%s-calibration.npz" % recipe["input"],
            "test": "data/%s-test.npz" % recipe["input"],
            "model": "nets/%s/serve.meta" % net if name == "bundle_bare" else None,
            "seconds": round(seconds, 2),
        }
    )  # fmt: skip
    return label


def judged(question, root):
    """Return the accuracy of a file as it serves."""
    recipe, path = question["recipe"], question["path"]
    test = np.load(os.path.join(root, "data", "%s-test.npz" % recipe["input"]))
    if question["format"] == "saved_model":
        with tf.Graph().as_default() as graph, session_of(graph) as session:
            tf.saved_model.loader.load(session, [tf.saved_model.SERVING], path)
            return accuracy(session, "x:0", "logits:0", test)
    reader = tf.train.load_checkpoint(path)
    return serve(recipe, {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, None, (), test)


def main():
    """Train, or judge, what stands on stdin."""
    task, root = sys.argv[1:]
    for line in sys.stdin:
        if task == "judge":
            try:
                answer = {"accuracy": judged(json.loads(line), root)}
            except Exception:
                answer = {"error": traceback.format_exc()[-500:]}
            print(json.dumps(answer), flush=True)
            continue
        recipe = json.loads(line)
        folder = os.path.join(root, "nets", recipe["net"])
        os.makedirs(folder, exist_ok=True)
        try:
            labels = make(recipe, os.path.join(root, "data"), folder)
        # One net that fails must not keep the others from being trained; the main process counts it.
        except Exception:
            with open(os.path.join(folder, "failed.txt"), "w") as file:
                file.write(traceback.format_exc())
            print(recipe["net"], "FAILED", traceback.format_exc().splitlines()[-1][:200], flush=True)
            continue
        with open(os.path.join(folder, "labels.json.part"), "w") as file:
            json.dump(labels, file)
        os.rename(os.path.join(folder, "labels.json.part"), os.path.join(folder, "labels.json"))
        first = labels[0]
        print(
            "%-46s %.3f %.3f %.1f s"
            % (recipe["net"], first["accuracy"], first["training_accuracy"], labels[-1]["seconds"]),
            flush=True,
        )


if __name__ == "__main__":
    main()
