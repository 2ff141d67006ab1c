"""What makes a pair certain: each kind of evidence by itself, and what is none."""

from nnxconv.matching.proposing import pair
from tests.support.layouts import source_tree


def certain(source, template):
    """The modules that are certain, by their names."""
    found = pair(source_tree(source), source_tree(template))
    return {str(one.sources[0]): str(one.templates[0]) for one in found.certain}


def test_biases_tell_which_of_two_kernels_of_one_size_is_meant():
    assert certain(
        """
        params/pwconv1/kernel f32[4,16]
        params/pwconv1/bias f32[16]
        params/pwconv2/kernel f32[16,4]
        params/pwconv2/bias f32[4]
        """,
        """
        params/wide/weight f32[16,4]
        params/wide/bias f32[16]
        params/back/weight f32[4,16]
        params/back/bias f32[4]
        """,
    ) == {"pwconv1": "wide", "pwconv2": "back"}


def test_statistics_of_another_collection_do_not_speak_against_a_pair():
    assert certain(
        """
        params/norm/scale f32[4]
        aux/batch_stats/norm/mean f32[4]
        """,
        """
        params/bn1/weight f32[4]
        params/bn1/running_mean f32[4]
        """,
    ) == {"norm": "bn1"}


def test_a_name_is_the_same_however_it_writes_numbers():
    """As PyTorch's diffusers and flax' have them, where shapes tell nothing."""
    tree = """
        params/mid/{0}/{1}/to_q/kernel f32[8,8]
        params/mid/{0}/{1}/{2}/kernel f32[8,8]
        params/mid/{0}/{3}/to_q/kernel f32[8,8]
        params/mid/{0}/{3}/{2}/kernel f32[8,8]
    """
    torch = tree.format("attentions/0", "attn1", "to_out/0", "attn2")
    flax = tree.format("attentions_0", "attn1", "to_out_0", "attn2")
    assert certain(torch, flax) == {
        f"mid.attentions.0.attn{n}.{one}": f"mid.attentions_0.attn{n}.{other}"
        for n in (1, 2)
        for one, other in (("to_q", "to_q"), ("to_out.0", "to_out_0"))
    }


ACTOR_CRITIC = """
params/actor/{0}/kernel f32[4,8]
params/actor/{1}/kernel f32[8,2]
params/critic/{0}/kernel f32[4,8]
params/critic/{1}/kernel f32[8,3]
"""


def test_the_only_one_of_its_size_in_a_module_of_the_same_name_is_certain():
    assert certain(ACTOR_CRITIC.format("hidden", "last"), ACTOR_CRITIC.format("first", "out")) == {
        "actor.hidden": "actor.first",
        "actor.last": "actor.out",
        "critic.hidden": "critic.first",
        "critic.last": "critic.out",
    }


def test_modules_of_other_names_tell_nothing_of_what_is_in_them():
    template = ACTOR_CRITIC.format("first", "out")
    template = template.replace("actor", "pi").replace("critic", "q")
    found = certain(ACTOR_CRITIC.format("hidden", "last"), template)
    assert found == {"actor.last": "pi.out", "critic.last": "q.out"}


EXPERT = """
params/layers_{i}/moe/router/kernel f32[4,2]
params/layers_{i}/moe/{e}/gate{end}/kernel f32[4,6]
params/layers_{i}/moe/{e}/up{end}/kernel f32[4,6]
params/layers_{i}/moe/{e}/down{end}/kernel f32[6,4]
"""


def experts(name, end):
    """Two layers of two experts."""
    lines = dict.fromkeys(
        line
        for i in range(2)
        for e in range(2)
        for line in EXPERT.format(i=i, e=name.format(e), end=end).split("\n")
    )
    return "\n".join(lines)


def test_the_gate_of_one_of_several_experts_is_no_router():
    found = certain(experts("experts_{0}", ""), experts("experts/{0}", "_proj"))
    names = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in found.items()}
    assert names == {
        "router": "router",
        "gate": "gate_proj",
        "up": "up_proj",
        "down": "down_proj",
    }
