"""The core's speculation classes as Python sees them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from taco_llm import _core

HEADER = Path(__file__).parents[2] / "cpp/spec/speculation_config.h"


def fields_of(struct: str) -> list[str]:
    """The names of a struct's fields, from the header: what is added there must be bound, too."""
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    lines = re.sub(r"//.*", "", body.group(1))
    declarations = [part.strip() for part in lines.split(";") if part.strip()]
    names = []
    for declaration in declarations:
        for item in declaration.split(","):
            names.append(item.partition("=")[0].split()[-1])
    return names


@pytest.mark.parametrize("name", ["LookaheadConfig", "SpeculationConfig"])
def test_every_field_of_the_settings_can_be_read_and_set(name: str) -> None:
    fields = fields_of(name)
    assert len(fields) > 5
    config = getattr(_core, name)()
    for field in fields:
        setattr(config, field, getattr(config, field))
    again = getattr(_core, name)(**{field: getattr(config, field) for field in fields})
    for field in fields:
        if field != "lookahead":
            assert getattr(again, field) == getattr(config, field)
    with pytest.raises(TypeError, match="no_such_field"):
        getattr(_core, name)(no_such_field=1)


def test_a_tree_is_lists() -> None:
    tree = _core.DraftTree(7)
    a = tree.add(0, 8, p=0.25, source="raw_local")
    b = tree.add(0, 9, p=0.5, source="ngram")
    c = tree.add(b, 10, p=0.5)
    assert (a, b, c, len(tree)) == (1, 2, 3, 4)
    assert tree.tokens == [7, 8, 9, 10]
    assert tree.parents == [-1, 0, 0, 2]
    assert tree.depths == [0, 1, 1, 2]
    assert tree.p == [1.0, 0.25, 0.5, 0.5]
    assert tree.sources == ["root", "raw_local", "ngram", "other"]
    assert tree.ancestors == [0b1, 0b11, 0b101, 0b1101]
    assert (tree.find_child(0, 9), tree.find_child(1, 10)) == (2, -1)
    tree.prune(0b1111)
    assert tree.tokens == [7, 9, 10, 8]  # the likelier child first
    tree.prune(0b0011)
    assert tree.tokens == [7, 9]


def test_a_tree_refuses_what_it_cannot_hold() -> None:
    tree = _core.DraftTree(0)
    tree.add(0, 1)
    with pytest.raises(ValueError, match="no node 2"):
        tree.add(2, 1)
    with pytest.raises(ValueError, match="has the child 1 already"):
        tree.add(0, 1)
    for token in range(2, 64):
        tree.add(0, token)
    with pytest.raises(ValueError, match="at most 64 nodes"):
        tree.add(0, 64)


def test_a_meter_counts() -> None:
    meter, sequence = _core.SpeculationMeter(log_interval=2), _core.SequenceSpeculation()
    tree = _core.DraftTree(0)
    tree.add(tree.add(0, 1, source="ngram"), 2, source="ngram")
    meter.count(sequence, tree, 1)
    meter.count(sequence, tree, 0)
    with pytest.raises(ValueError, match="no node 3"):
        meter.count(sequence, tree, 3)
    assert (sequence.iterations, sequence.drafted, sequence.accepted) == (2, 4, 1)
    assert sequence.accepted_at_least == [2, 1]
    stats = meter.stats()
    assert (stats.iterations, stats.hit_iterations, stats.reports) == (2, 1, 1)
    assert (stats.drafted_by_source["ngram"], stats.accepted_by_source["ngram"]) == (4, 1)
    assert stats.hit_lengths["ngram"][1] == stats.hit_lengths["root"][0] == 1
    assert stats.averages.hit_valid_rate == 0.25
