"""What follows from a person's answers: rules that work, and nothing that is lost."""

import random
from collections import Counter

import pytest

from nnxconv.errors import BadInput
from nnxconv.matching import propose
from nnxconv.matching.deciding import claimed
from tests.support.generated_pairs import generated_pair

PAIRS = 400


def proposal_of(seed):
    pair = generated_pair(seed)
    state, groups = pair.source.state()
    return propose(state, groups, pair.template.state()[0], names=("a", "b"))


def drawn_answers(found, rng):
    """For most questions one of the choices whose leaves nobody else has."""
    taken = set()
    for question in found.questions():
        free = [c for c in question.choices if taken.isdisjoint(claimed(c.pair))]
        answer = rng.choice(free) if free and rng.random() < 0.8 else None
        taken |= claimed(answer.pair) if answer else set()
        yield answer


def leaves_of(pairs):
    """How often each leaf of the source and of the template is in a pair, or in none."""
    counts = Counter()
    for place, only in enumerate((pairs.only_source, pairs.only_template)):
        counts.update((place, s.collection, key) for _, s in only for key in s.keys)
    for found in (*pairs.certain, *pairs.proposed, *pairs.turned):
        for leaf in found.leaves:
            for place, slots in enumerate((leaf.sources, leaf.templates)):
                counts.update((place, s.collection, key) for s in slots for key in s.keys)
    maybe = [leaf for one in pairs.unclear for c in one.candidates for leaf in c.leaves]
    sides = [[s for leaf in maybe for s in leaf.sources], [s for p in maybe for s in p.templates]]
    for place, slots in enumerate(sides):
        counts.update({(place, s.collection, key) for s in slots for key in s.keys})
    return counts


@pytest.mark.sample(1)
@pytest.mark.parametrize("block", range(8))
def test_whatever_is_answered_the_rules_work_and_every_leaf_is_somewhere_once(block):
    size = PAIRS // 8
    for seed in range(block * size, (block + 1) * size):
        before = proposal_of(seed)
        answers = list(drawn_answers(before, random.Random(seed)))
        after = before.decided(answers)
        assert after.problems == (), f"seed {seed}"
        assert leaves_of(after.pairs).keys() == leaves_of(before.pairs).keys(), f"seed {seed}"
        assert set(leaves_of(after.pairs).values()) <= {1}, f"seed {seed}"
        chosen = sum(answer is not None for answer in answers)
        assert len(after.pairs.certain) == len(before.pairs.certain) + chosen


def test_no_answers_change_nothing():
    found = next(f for f in map(proposal_of, range(50)) if len(f.questions()) > 2)
    assert found.decided([None] * len(found.questions())) == found


def test_a_leaf_that_two_answers_claim_is_refused():
    for found in map(proposal_of, range(400)):
        choices = [q.choices[0] for q in found.questions() if q.kind == "open"]
        asked = [q.kind == "open" for q in found.questions()]
        if len(choices) > 1 and claimed(choices[0].pair) & claimed(choices[1].pair):
            break
    first, second = (p for p, is_open in enumerate(asked) if is_open and sum(asked[:p]) < 2)
    answers = [None] * len(asked)
    answers[first], answers[second] = choices[:2]
    with pytest.raises(BadInput) as refused:
        found.decided(answers)
    names = [found.questions()[at].sources[0] for at in (first, second)]
    assert refused.value.message == (
        f"`{choices[1].pair.templates[0]}` was chosen for {names[0]} and {names[1]}"
    )
