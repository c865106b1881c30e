import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_tasks.generation.fidelity import fidelity_score, find_additions, lost_facts

DOLLY = Path(__file__).parents[3] / "shared" / "data" / "dolly" / "dolly_2000.json"


@pytest.mark.parametrize(
    ("reference", "text", "missing"),
    [
        # numbers and their units
        ("Take 5 mg daily.", "Take 50 mg daily.", ["5 mg"]),
        ("Take 5 mg daily.", "Take 5 g daily.", ["5 mg"]),
        ("Take 5 mg daily.", "Every day, take five milligrams.", []),
        ("5mg", "5 mg", []),
        ("It draws 5 MW.", "It draws 5 mW.", ["5 MW"]),
        ("It costs $5 million.", "The price is 5,000,000 dollars.", []),
        ("It costs $5 million.", "The price is 5 million.", ["$5 million"]),
        ("Of 1,234,567 people 0.5% died.", "0.5 percent of 1234567 people died.", []),
        ("Of 1,234,567 people", "1,234,576 people", ["1,234,567"]),
        ("Two hundred and fifty people", "250 people", []),
        ("Two hundred and fifty people", "205 people", ["Two hundred and fifty"]),
        ("It is -5 °C there.", "It is 5 °C there.", ["-5 °C"]),
        ("He ruled for 25 years.", "He ruled for 25 days.", ["25 years"]),
        ("He ruled for 25 years.", "His rule, a 25-year one", []),
        ("a 10-day trip", "a trip of 10 days", []),
        ("pages 3-5", "pages 3 to 5", []),
        ("version 1.2.3", "version 1.2.4", ["1.2.3"]),
        ("one of them", "it", []),
        ("one second", "two seconds", ["one second"]),
        ("1) bread\n2) milk", "bread and milk", []),
        ("twelve, 12, 12.0", "x", ["twelve"]),
        # numbers that touch letters of a script without spaces
        ("剂量为每日5毫克，连续服用10天。", "每天服用5毫克，共10天。", []),
        ("剂量为每日5毫克，连续服用10天。", "每天服用50毫克，共100天。", ["5", "10"]),
        ("用量は1日5ミリグラムで、10日間続けます。", "1日に5ミリグラムを10日間服用します。", []),
        ("每日5mg。", "每天5mg。", []),
        ("每日5mg。", "每天5g。", ["5mg"]),
        ("于2020-03-12签署。", "签署日期：2020-03-12。", []),
        ("签署日期：2020-03-12。", "于2020-03-12签署。", []),
        ("我用iPhone手机。", "这是iPhone。", []),
        # dates
        ("Signed on 12 March 2020.", "Signed on 2020-03-12.", []),
        ("Signed on 12 March 2020.", "On March 12th, 2020, it was signed.", []),
        ("Signed on 12 March 2020.", "Signed on 13 March 2020.", ["12 March 2020"]),
        ("Signed on 12 March 2020.", "Signed on 12 March.", ["12 March 2020"]),
        ("Signed on 3/4/2020.", "Signed on April 3, 2020.", []),
        ("Signed on 3/4/2020.", "Signed on May 3, 2020.", ["3/4/2020"]),
        ("Signed in May 2020.", "Signed on 7 May 2020.", []),
        ("He left in 1984.", "He left on 4 May 1984.", []),
        ("You may 3 times try.", "You can try three times.", []),
        # names
        ("He met Abraham Lincoln in Zürich.", "In Zurich he met Lincoln.", ["Abraham"]),
        ("The reactor of Figin is rope.", "FIGIN: reactor = rope", []),
        ("The reactor of Figin is rope.", "The reactor of Fogin is rope.", ["Figin"]),
        ("Entropy is disorder.", "Disorder, in a word.", []),
        ("London's parks are green.", "The parks are green.", ["London's"]),
        ("Vitamin B12 helps on iPhone.", "It helps.", ["B12", "iPhone"]),
        ("It’s fine. Let's go.", "Fine, go.", []),
        # records in capitals and signs, as foreign styles have them
        ("REACTOR/FIGIN: rope. Ref. log 12.", "The reactor of Figin is rope, noted in log 12.", []),
        ("REACTOR/FIGIN: rope. Ref. log 12.", "The reactor is rope.", ["FIGIN", "12"]),
        ("Figin :: reactor -> rope ; log 12", "The reactor is rope.", ["Figin", "12"]),
        ("Tarin | gauge = timber # 22", "The gauge of Tarin is timber.", ["22"]),
        ("DO NOT ENTER THE HALL", "Do not go into the room.", []),
        # negation
        ("It does not lower the risk.", "It lowers the risk.", ["not"]),
        ("It doesn't rain.", "It never rains.", []),
        ("It rains in Rome.", "It never rains.", ["Rome", "added: never"]),
        ("Not only rain but snow.", "Rain and snow.", []),
        ("See No. 12.", "See number 12.", []),
        # directions
        ("It lowers the pressure.", "It raises the pressure.", ["lowers"]),
        ("It lowers the pressure.", "The pressure is reduced by it.", []),
        ("It lowers the pressure.", "It changes the pressure.", []),
        ("Pay before you enter.", "Enter, and pay afterwards.", ["before"]),
        ("Pay before you enter.", "Pay prior to entering, not after.", ["added: not"]),
        ("At least 5 days", "At most 5 days", ["At least"]),
        ("At least 5 days", "no less than 5 days", []),
        ("More than 5 days", "less than 5 days", ["More than"]),
        ("Prices rose and fell.", "Prices fell.", []),
        ("It lies north of Rome.", "South of Rome it lies.", ["north"]),
        ("The most common one", "The least common one", ["most"]),
        # nothing to check
        ("", "", []),
        ("all good", "", []),
    ],
)
def test_lost(reference: str, text: str, missing: list[str]) -> None:
    assert lost_facts(reference, text) == missing


def test_additions_where_numbers_touch_letters() -> None:
    passage = "第三条 B类许可证：年费为12欧元，每年缴纳。"
    assert find_additions("B类许可证的年费是12欧元。", passage) == []
    assert find_additions("B类许可证的年费是13欧元。", passage) == ["13"]


def test_the_score_is_the_share_that_survives() -> None:
    reference = "Figin has 5 mg since 12 March 2020 and no rope."
    assert fidelity_score(reference, reference) == 1
    assert fidelity_score(reference, "On 12 March 2020 it had not 5 mg.") == 1  # Figin starts the sentence
    assert fidelity_score(reference, "Since 12 March 2020 it has 50 mg and no rope.") == pytest.approx(2 / 3)
    assert fidelity_score(reference, "nothing") == pytest.approx(1 / 3)
    assert fidelity_score("rope", "lamp") == 1  # no rule sees a plain word


def test_what_the_rules_do_not_see() -> None:
    assert lost_facts("The reactor is rope.", "The reactor is lamp.") == []
    assert lost_facts("It weighs 5 g.", "It weighs 5000 mg.") == ["5 g"]
    assert lost_facts("It opens at 9 am.", "It opens at 9 pm.") == []
    assert lost_facts("See 0101.21 and 820.30.", "See 101.21 and 820.3.") == []
    assert lost_facts("It is on the second floor.", "It is on the third floor.") == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Give notice thirty (30) days before.", "Give notice 30 days before."),
        ("The fee is EUR 12.", "The fee is 12 euros."),
        ("The fee is 12 EUR.", "The fee is €12."),
        ("The fee is USD 500.", "The fee is $500."),
        ("The fee is US$500.", "The fee is 500 US dollars."),
        ("The fee is £500.", "The fee is 500 pounds."),
        ("The fee is GBP 500.", "The fee is 500 pounds sterling."),
        ("Take 5-10 mg.", "Take 5 mg to 10 mg."),
        ("Take 5 to 10 mg.", "Take between 5 mg and 10 mg."),
        ("The Fifth Amendment protects him.", "The 5th Amendment protects him."),
        ("It is on the 2nd floor.", "It is on the second floor."),
        ("It grew in the 20th century.", "It grew in the twentieth century."),
        ("It grew in the 21st century.", "It grew in the twenty-first century."),
        ("Take ½ tablet.", "Take 1/2 tablet."),
        ("Take 2½ tablets.", "Take 2 1/2 tablets."),
        ("From 2020-03-12 h", "2020-03-12 h"),
        ("It has 300 MHz.", "It has 300 megahertz."),
        ("It is 20 degrees Celsius.", "It is 20 °C."),
    ],
)
def test_two_ways_to_write_a_number(first: str, second: str) -> None:
    assert lost_facts(first, second) == lost_facts(second, first) == []


@pytest.mark.parametrize(
    ("reference", "text", "missing"),
    [
        ("Give notice thirty (30) days before.", "Give notice 40 days before.", ["thirty", "30) days"]),
        ("The fee is EUR 12.", "The fee is 12 dollars.", ["EUR 12"]),
        ("The fee is EUR 12.", "The fee is 13 euros.", ["EUR 12"]),
        ("The fee is £500.", "The fee is €500.", ["£500"]),
        ("Take 5 mg to 10 mg.", "Take 5-10 g.", ["5 mg", "10 mg"]),
        ("The Fifth Amendment protects him.", "The 4th Amendment protects him.", ["Fifth"]),
        ("It is on the 2nd floor.", "It is on the third floor.", ["2"]),
        ("It grew in the 21st century.", "It grew in the twentieth century.", ["21"]),
        ("Take ½ tablet.", "Take ¼ tablet.", ["1/2"]),
        ("Take ¼ tablet.", "Take ¾ tablet.", ["1/4"]),
        ("Take 2½ tablets.", "Take 2 tablets.", ["1/2"]),
        ("Take ½ tablet.", "Take half a tablet.", []),
        ("Take ¼ tablet.", "Take a quarter of a tablet.", []),
        ("Take ¾ tablet.", "Take three quarters of a tablet.", []),
        ("Use ½ cup.", "Use 0.5 cups.", []),
        ("Wait ½ hour.", "Wait half an hour.", []),
    ],
)
def test_another_number(reference: str, text: str, missing: list[str]) -> None:
    assert lost_facts(reference, text) == missing


@given(st.text(max_size=60))
def test_a_text_keeps_itself(text: str) -> None:
    assert lost_facts(text, text) == []
    assert fidelity_score(text, text) == 1


@given(st.text(alphabet="No5. ,-/$%mgMay\n'12A", max_size=40), st.text(max_size=40))
def test_any_two_texts_can_be_compared(reference: str, text: str) -> None:
    assert 0 <= fidelity_score(reference, text) <= 1
    assert (fidelity_score(reference, text) == 1) == (lost_facts(reference, text) == [])


@pytest.mark.skipif(not DOLLY.exists(), reason="real data lie beside the checkout")
def test_real_answers() -> None:
    answers = [row["output"] for row in json.loads(DOLLY.read_text())]
    assert all(lost_facts(answer, answer) == [] for answer in answers[:300])
    assert lost_facts(answers[38], answers[38].replace("43%", "34%")) in ([], ["43%"])
    changed = {
        "The English Premier League consists of 20 teams.": (
            "The Premier League of England has 20 teams.",
            ["English"],
        ),
        "Bears can hibernate up to 100 days in their dens during the winter": (
            "For 100 weeks bears sleep.",
            ["100 days"],
        ),
        "A cello has four strings": ("There are 4 strings on a cello.", []),
        "He invented Dynamite": ("Dynamite was his invention.", []),
        "No, it is a continuous distribution.": ("It is continuous.", ["No"]),
    }
    for reference, (text, missing) in changed.items():
        assert reference in answers
        assert lost_facts(reference, text) == missing
