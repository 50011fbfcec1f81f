"""Layers in classes of the user's own: which of them run alike."""

from tests.keras_configs import deciders, entry


def bn(name, class_name="BatchNormalization", **config):
    return entry(class_name, name, momentum=0.9, moving_variance_initializer="ones", **config)


def test_the_layers_of_a_functional_model_of_an_own_class_run_in_one_call():
    """Such a class has an own `train_step`; a model without connections has an own `call`."""
    functional = {"input_layers": [["x", 0, 0]], "output_layers": [["b", 0, 0]]}
    found = deciders(entry("mine>Trainer", "model", bn("a"), bn("b"), **functional))
    assert found["a"] == found["b"]
    found = deciders(entry("mine>Trainer", "model", bn("a"), bn("b")))
    assert found["a"] != found["b"]


def test_layers_of_one_own_class_with_the_same_options_run_the_same_code():
    own = "mine>Forgetful"
    found = deciders(
        entry("Functional", "model", bn("a", own), bn("b", own), bn("frozen", own, fixed=True), bn("keras"))
    )
    assert found["a"] == found["b"]
    assert len({found[name] for name in ("a", "frozen", "keras")}) == 3
