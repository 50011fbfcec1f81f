"""What names say, one by one: each implementation's, and the traps beside them."""

from __future__ import annotations

import pytest

from ckpt_doctor.checkpoint import Variable
from ckpt_doctor.naming import group_variables, looks_like_batch_norm, read_name, with_role
from ckpt_doctor.naming.reading import undoubled

KEY = "/.ATTRIBUTES/VARIABLE_VALUE"


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("conv1/BatchNorm/beta", "conv1/BatchNorm", "beta"),
        ("conv1/BatchNorm/moving_variance", "conv1/BatchNorm", "moving_variance"),
        ("bn/gamma:0", "bn", "gamma"),
        (f"layer_with_weights-1/moving_mean{KEY}", "layer_with_weights-1", "moving_mean"),
        ("bn1/mean/EMA", "bn1", "moving_mean"),
        ("bn1/moving_variance/average", "bn1", "moving_variance"),
        ("bn2a_branch2a/bn2a_branch2a_running_std:0", "bn2a_branch2a", "moving_variance"),
        # A name that the session held already.
        ("bn1/bn1_gamma_1:0", "bn1", "gamma"),
        ("net/bn1_running_mean_2", "net/bn1_2", "moving_mean"),
        ("batchnormalization_1_gamma", "batchnormalization_1", "gamma"),
        ("c1/pop_mean_3", "c1/3", "moving_mean"),
        ("bn/bn/moments/Squeeze/ExponentialMovingAverage", "bn", "moving_mean"),
        ("a/bn/a/bn/moments/Squeeze_1/ExponentialMovingAverage", "a/bn", "moving_variance"),
        ("bn/moments/normalize/variance/ExponentialMovingAverage", "bn", "moving_variance"),
        ("d_bn1/d_bn1_1/moments/Squeeze/ExponentialMovingAverage", "d_bn1", "moving_mean"),
        ("bn/moments/moments_1/mean/ExponentialMovingAverage", "bn", "moving_variance"),
    ],
)
def test_a_role_by_its_name(name, layer, role):
    said = read_name(name)
    assert (said.kind, said.layer, said.role) == ("batch-norm", layer, role)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bn/gamma/Adam_1", "slot"),
        ("bn/gamma/AdamW", "slot"),
        ("bn/gamma/D_Adam_1", "slot"),
        ("bn/gamma/MyMomentumOptimizer", "slot"),
        ("bn/MomentumEncoder", "other"),
        ("Adams", "other"),
        (f"bn/gamma/.OPTIMIZER_SLOT/optimizer/m{KEY}", "slot"),
        (f"optimizer/_variables/7{KEY}", "slot"),
        ("beta1_power", "counter"),
        ("Adam/beta_1", "counter"),
        ("global_step", "counter"),
        ("bn/moving_mean/ExponentialMovingAverage", "shadow"),
        ("bn/bn/moving_mean/biased", "companion"),
        ("bn/renorm_stddev", "companion"),
        ("bn/accu/accu_counter", "companion"),
        ("bn_conv1/scale", "maybe"),
        ("bn/gamma/kernel", "other"),
        ("vq/ema_cluster_size/average", "other"),
        ("AddN/ExponentialMovingAverage", "shadow"),
    ],
)
def test_what_is_no_role(name, kind):
    assert read_name(name).kind == kind


@pytest.mark.parametrize(
    "scope",
    ["bn", "conv1/BatchNorm", "batch_normalization_12", "bn2a_branch2a", "box_net/box-0-bn-3", "init/init_bn",
     "tpu_batch_normalization", "batchnormalization_1", "conv1_bn", "resnet/conv_0/BatchNorm_2", "block/convBN",
     "sync_batch_normalization"],
)  # fmt: skip
def test_scopes_that_say_batch_norm(scope):
    assert looks_like_batch_norm(scope)


@pytest.mark.parametrize(
    "scope",
    ["bneck_1", "bnet", "layer_norm", "LayerNorm", "ln_2", "group_normalization", "InstanceNorm", "subnet", "conv1",
     "transformer/layer_normalization_3", "norm", "rms_norm", "bn/LayerNorm", "absnorm"],
)  # fmt: skip
def test_scopes_that_do_not(scope):
    assert not looks_like_batch_norm(scope)


def test_names_of_other_roles_keep_their_form():
    assert with_role("bn/gamma:0", "moving_mean") == "bn/moving_mean:0"
    assert with_role(f"bn/gamma{KEY}", "moving_mean") == f"bn/moving_mean{KEY}"
    assert with_role("l/bn_gamma", "moving_mean") == "l/bn_moving_mean"


def test_a_doubled_scope_is_said_once():
    assert undoubled("bn/bn") == "bn"
    assert undoubled("a/bn/a/bn") == "a/bn"
    assert undoubled("bn/bn/bn") == "bn"
    assert undoubled("d_bn1/d_bn1_1") == "d_bn1"
    assert undoubled("discriminator/d_bn1/discriminator_1/d_bn1") == "discriminator/d_bn1"
    assert undoubled("a/b/c") == "a/b/c"
    assert undoubled("conv1/conv10") == "conv1/conv10"


def variables(**shapes: tuple[int, ...]) -> list[Variable]:
    return [
        Variable(name.replace("__", "/"), shape, "float32", 4, lambda: None)  # type: ignore[arg-type,return-value]
        for name, shape in shapes.items()
    ]


def grouped(**shapes: tuple[int, ...]):
    return group_variables(variables(**shapes), known=(), other_normalization=())


def test_a_lone_statistic_is_not_judged():
    found = grouped(reward__moving_mean=(4,), fc__kernel=(4, 4))
    assert not found.layers
    assert set(found.not_judged) == {"reward/moving_mean"}


def test_a_pair_beside_a_count_is_a_scaler():
    assert not grouped(obs__mean=(4,), obs__variance=(4,), obs__count=()).layers
    assert not grouped(obs__running_mean=(4,), obs__running_var=(4,), obs__count=()).not_judged


def test_one_gamma_and_beta_beside_a_convolution_prove_nothing():
    shapes = {"c1__gamma": (4,), "c1__beta": (4,), "c1__w": (3, 3, 2, 4)}
    assert not grouped(**shapes).layers
    twice = shapes | {name.replace("c1", "c2"): shape for name, shape in shapes.items()}
    assert [group.by_company for group in grouped(**twice).layers] == [True, True]


def test_drift_needs_exactly_one_way_to_fit():
    lost = {"bn_1__gamma": (4,), "bn_1__beta": (4,)}
    one = {"bn_5__moving_mean": (4,), "bn_5__moving_variance": (4,)}
    two = {"bn_6__moving_mean": (4,), "bn_6__moving_variance": (4,)}
    assert len(grouped(**lost, **one, **two).layers) == 3


V = (4,)


@pytest.mark.parametrize(
    ("shapes", "layers"),
    [
        # takerum/vat_tf, layers.py.
        (
            {"CNN__b0_gamma": V, "CNN__b0_beta": V, "CNN__b0_mean": V, "CNN__b0_var": V, "CNN__b0_gamma__Adam": V},
            {"CNN/b0": ("CNN/b0_gamma", "CNN/b0_beta", "CNN/b0_mean", "CNN/b0_var")},
        ),
        # aiUIUC/pyAIUtils, aiutils/tftools/batch_normalizer.py.
        (
            {"bn__gamma": V, "bn__beta": V, "bn__average_mean": V, "bn__average_variance": V},
            {"bn": ("bn/gamma", "bn/beta", "bn/average_mean", "bn/average_variance")},
        ),
        # Another word for the same.
        (
            {"bn__gamma": V, "bn__beta": V, "bn__ema_mean": V, "bn__ema_var": V},
            {"bn": ("bn/gamma", "bn/beta", "bn/ema_mean", "bn/ema_var")},
        ),
        (
            {"norm_scale": V, "norm_offset": V, "norm_mean": V, "norm_var": V},
            {"norm": ("norm_scale", "norm_offset", "norm_mean", "norm_var")},
        ),
        # Two layers in one scope.
        (
            {f"f__{layer}_{word}": V for layer in "ab" for word in ("gamma", "beta", "mean", "var")},
            {f"f/{layer}": tuple(f"f/{layer}_{word}" for word in ("gamma", "beta", "mean", "var")) for layer in "ab"},
        ),
        # Not four vectors of one length; three; two pairs; a scaler of inputs; another normalisation.
        ({"b0_scale": V, "b0_offset": V, "b0_mean": (5,), "b0_var": (5,)}, {}),
        ({"b0_scale": V, "b0_mean": V, "b0_var": V}, {}),
        ({"a__scale": V, "a__offset": V, "a__x_mean": V, "a__x_var": V, "a__y_mean": V, "a__y_var": V}, {}),
        ({"obs_scale": V, "obs_offset": V, "obs_mean": V, "obs_var": V, "obs_count": ()}, {}),
        ({"layer_norm__scale": V, "layer_norm__shift": V, "layer_norm__x_mean": V, "layer_norm__x_var": V}, {}),
    ],
)
def test_four_vectors_with_words_of_their_authors_own_are_a_layer(shapes, layers):
    found = grouped(**shapes)
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    assert {group.name: tuple(group.roles[role] for role in roles) for group in found.layers} == layers
    assert not any(group.absent for group in found.layers)
    assert all(group.initial is None for group in found.layers)
    names = {variable.name for variable in variables(**shapes)}
    assert {name for group in found.layers for name in group.roles.values()} | set(found.others) == names


def test_what_a_description_speaks_for_is_left_to_it():
    shapes = {"norm_scale": V, "norm_offset": V, "norm_mean": V, "norm_var": V}
    assert grouped(**shapes).layers
    known = {variable.name for variable in variables(**shapes)}
    assert not group_variables(variables(**shapes), known=known, other_normalization=()).layers
