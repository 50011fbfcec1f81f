"""The plan of a measurement on graphs drawn by hand: which run computes what, and what lives on between runs."""

from ckpt_doctor.capture.levels import in_sequence, plan_levels
from ckpt_doctor.graphs.cut import CutSite
from ckpt_doctor.graphs.graph import Graph
from ckpt_doctor.proto import tensorflow_subset_pb2 as pb


def draw(text):
    """Return the graph of lines `name: inputs`, and a site for each name that begins with `bn`, by layer and number."""
    proto = pb.GraphDef()
    sites = []
    for line in text.split("\n"):
        name, _, inputs = line.strip().partition(": ")
        if not name:
            continue
        node = proto.node.add(name=name, op="Any", input=inputs.split())
        if name.startswith("bn"):
            for role in ("mean", "variance"):
                proto.node.add(name=f"{name}/{role}", op="Placeholder")
                node.input.append(f"{name}/{role}")
            sites.append(
                CutSite(name.partition(".")[0], f"{inputs}:0", f"{name}/mean:0", f"{name}/variance:0", -1, 1e-3)
            )
    return Graph(proto), sites


def plan(text, **options):
    graph, sites = draw(text)
    everything = range(len(sites))
    given = {"measured": everything, "awaited": everything, "pooled": True} | options
    return plan_levels(graph, ["x:0"], sites, **given)


RESIDUAL = """
    x
    weights
    conv1: x weights
    bn1: conv1
    conv2: bn1 weights
    bn2: conv2
    sum: bn2 conv1
    bn3: sum
    logits: bn3
"""


def test_a_chain_of_sites_is_one_level_each():
    first, second, third = plan(RESIDUAL)
    assert [level.sites for level in (first, second, third)] == [(0,), (1,), (2,)]
    assert [level.inputs for level in (first, second, third)] == [("x:0",), (), ()]
    assert (set(first.feeds), set(second.feeds), set(third.feeds)) == (set(), {"conv1:0"}, {"conv2:0", "conv1:0"})
    assert set(first.fetches) == {"conv1:0"}
    assert set(second.fetches) == {"conv2:0"}
    assert (set(third.fetches), third.kept) == ({"sum:0"}, ())


def test_a_live_tensor_is_dropped_after_its_last_reader():
    first, second, third = plan(RESIDUAL)
    assert (first.kept, second.kept) == (("conv1:0",), ("conv2:0",))
    assert (first.dropped, second.dropped) == ((), ())
    assert set(third.dropped) == {"conv1:0", "conv2:0"}


def test_what_depends_on_no_data_is_neither_kept_nor_fed():
    for level in plan(RESIDUAL):
        assert not {"weights:0"} & {*level.feeds, *level.fetches, *level.kept}


def test_sites_side_by_side_share_a_level():
    graph = """
        x
        left: x
        right: x
        bn1: left
        bn2: right
        sum: bn1 bn2
        bn3: sum
    """
    first, second = plan(graph)
    assert (first.sites, second.sites) == ((0, 1), (2,))
    assert set(second.feeds) == {"left:0", "right:0"}


def test_a_site_with_known_statistics_makes_no_level():
    levels = plan(RESIDUAL, measured=[0, 2], awaited=[0, 2])
    assert [level.sites for level in levels] == [(0,), (2,)]
    # What feeds the second is computed in the run that computes the third's input.
    assert set(levels[1].feeds) == {"conv1:0"}


def test_nothing_measured_is_one_plain_run():
    [level] = plan(RESIDUAL, awaited=[])
    assert level.sites == (0, 1, 2)
    assert (level.feeds, level.kept, level.inputs) == ((), (), ("x:0",))


TOWERS = """
    x
    left: x
    right: x
    bn1.0: left
    deeper: bn1.0
    bn2: deeper
    side: right bn2
    bn1.1: side
    bn3: bn1.0
"""


def test_pooled_sites_wait_for_each_other():
    graph, sites = draw(TOWERS)
    assert [site.layer for site in sites] == ["bn1", "bn2", "bn1", "bn3"]
    alone = plan_levels(graph, ["x:0"], sites, range(4), range(4), pooled=False)
    assert [level.sites for level in alone] == [(0,), (1, 3), (2,)]
    assert in_sequence(graph, sites, range(4)) == {"bn1"}


def test_shared_layers_side_by_side_are_in_no_sequence():
    graph, sites = draw("""
        x
        left: x
        right: x
        bn1.0: left
        bn1.1: right
        sum: bn1.0 bn1.1
        bn2: sum
    """)
    assert in_sequence(graph, sites, range(3)) == set()
    first, second = plan_levels(graph, ["x:0"], sites, range(3), range(3), pooled=True)
    assert (first.sites, second.sites) == ((0, 1), (2,))


def test_an_input_that_is_itself_normalised_is_read_from_the_data():
    first, second = plan("x\nbn1: x\nconv: bn1 x\nbn2: conv")
    assert (first.inputs, first.sites, first.fetches) == (("x:0",), (0,), ("x:0",))
    assert (second.inputs, second.sites, second.feeds) == (("x:0",), (1,), ())


def test_what_cannot_be_handed_on_is_made_again_from_what_can():
    """A list (`variant`) of steps that an RNN behind the first site goes through."""
    graph = "x\nembedding: x\nlist: embedding\nlonger: list\nbn1: embedding\nrnn: bn1 longer\nbn2: rnn"
    first, second = plan(graph, unheld={"list:0", "longer:0"})
    assert (set(first.fetches), set(second.feeds)) == ({"embedding:0"}, {"embedding:0"})
    assert set(second.fetches) == {"rnn:0"}


def test_what_is_made_again_reads_its_statistics_again():
    graph = "x\nbn1: x\nlist: bn1\nconv: bn1\nbn2: conv\nrnn: bn2 list\nbn3: rnn"
    _, second, third = plan(graph, unheld={"list:0", "bn1:0"})
    assert (second.normalised, third.normalised) == ((0,), (0, 1))
    assert set(third.feeds) == {"conv:0"}
    assert third.inputs == ("x:0",)
