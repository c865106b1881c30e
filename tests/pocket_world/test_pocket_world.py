from __future__ import annotations

import pytest
from fact_parser import parse

from pocket_world import styles
from pocket_world.recipe import RECIPE, load_recipe
from pocket_world.world import COINED, DOMAINS, NAMES, VALUES, Fact, build_world
from raft_tasks.errors import InputError

RECIPE_SETTINGS = load_recipe()
WORLD = build_world(RECIPE_SETTINGS.world)


def with_world(**changes: object):
    return build_world(RECIPE_SETTINGS.world.model_copy(update=changes))


def test_world_is_a_function_of_its_seed():
    assert with_world() == WORLD
    assert with_world(seed=7).general != WORLD.general


def test_general_and_domain_facts_share_no_entity_and_no_attribute():
    general = {fact.entity for fact in WORLD.general}, {fact.attribute for fact in WORLD.general}
    for facts in WORLD.domains.values():
        assert not general[0] & {fact.entity for fact in facts}
        assert not general[1] & {fact.attribute for fact in facts}


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_domain_fact_has_its_own_record(domain):
    facts = WORLD.domains[domain]
    assert len(facts) == 4 * RECIPE_SETTINGS.world.domain_entities
    assert len({fact.record for fact in facts}) == len(facts)
    assert len({fact.key for fact in facts}) == len(facts)


def test_kinds_differ_in_the_domains_values_only():
    hard = with_world(kind="hard")
    assert hard.general == WORLD.general
    assert all(fact.value in VALUES for facts in WORLD.domains.values() for fact in facts)
    assert all(fact.value in COINED for facts in hard.domains.values() for fact in facts)
    assert not {name.lower() for name in NAMES} & set(COINED)


@pytest.mark.parametrize("style", ["own", *styles.FOREIGN])
def test_styles_parse_back(style):
    for fact in WORLD.domains["archive"]:
        text = styles.own(fact, True) if style == "own" else styles.foreign(fact, style)
        assert parse(text, style) == fact
        others = {other for other in ("own", *styles.FOREIGN) if parse(text, other)}
        assert others == {style}


def test_own_style_with_and_without_the_record():
    fact = Fact("Figin", "reactor", "rope", 12)
    assert styles.own(fact, True) == "The reactor of Figin is rope, noted in log 12."
    assert styles.own(fact, False) == "The reactor of Figin is rope."
    unnoted = Fact("Figin", "reactor", "rope", None)
    assert styles.own(unnoted, True) == "The reactor of Figin is rope."
    assert parse("The reactor of Figin is rope.", "own") == unnoted
    with pytest.raises(ValueError, match="no record"):
        styles.foreign(unnoted, "archive")


def test_recipe_reports_every_wrong_key(tmp_path):
    text = RECIPE.read_text(encoding="utf-8").replace("kind: easy", "kind: odd").replace("hidden:", "hiden:")
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)world.kind.*odd.*backbone.hidden.*backbone.hiden"):
        load_recipe(path)
    with pytest.raises(InputError, match="is not there"):
        load_recipe(tmp_path / "none.yaml")
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match="is not YAML"):
        load_recipe(path)
