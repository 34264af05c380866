"""Prompt pairs about facts: a subject, and what a table says of it.

"The capital of France is the city of" → " Paris", not " Tokyo"; the patch prompt asks the same of
Japan. There are three tables: `capitals` (of countries and states), `continents` and `opposites`.
Subjects and answers are single tokens of SmolLM2, with their leading space, so that all prompts of
a table have one length.

Splits share no subject. Answers may be shared where there are few (continents). A table holds what
SmolLM2-135M-Instruct knows: facts that it got wrong among all answers of the table were left out
(6 of 77 capitals, 5 of 81 continents, 7 of 109 opposites), and so were capitals that are no single
token or the subject's own name.
"""

from __future__ import annotations

from dataclasses import dataclass

from course_utils.prompts.tasks import SPLITS, PromptPair, TaskError


@dataclass(frozen=True)
class FactTable:
    """One kind of fact.

    Attributes:
        template: with ``{}`` where the subject stands; the answer comes right after it.
        answers: by split and subject.
    """

    template: str
    answers: dict[str, dict[str, str]]

    def pairs(self, split: str) -> list[PromptPair]:
        """Each subject of a split with each other one that has another answer, in rounds: the first
        round has every subject once.
        """
        facts = list(self.answers[split].items())
        rows = []
        for turn in range(1, len(facts)):
            for (subject, answer), other in zip(facts, facts[turn:] + facts[:turn], strict=True):
                if answer != other[1]:
                    rows.append(self._pair((subject, answer), other))
        return rows

    def _pair(self, clean: tuple[str, str], patch: tuple[str, str]) -> PromptPair:
        return PromptPair(
            clean_prefix=self.template.format(clean[0]),
            patch_prefix=self.template.format(patch[0]),
            clean_answer=f" {clean[1]}",
            patch_answer=f" {patch[1]}",
            case=clean[0],
        )


def _table(text: str) -> dict[str, str]:
    """``{subject: answer}`` of "France Paris; Japan Tokyo"."""
    pairs = [fact.split() for fact in text.split(";")]
    return {subject: answer for subject, answer in pairs}


FACTS: dict[str, FactTable] = {
    "capitals": FactTable(
        "The capital of {} is the city of",
        {
            "train": _table("""
            Netherlands Amsterdam; Norway Oslo; Georgia Atlanta; Hawaii Honolulu;
            Ukraine Kiev; Ireland Dublin; Russia Moscow; California Sacramento; Japan
            Tokyo; Switzerland Bern; Afghanistan Kabul; France Paris; Spain Madrid;
            Arizona Phoenix; Syria Damascus; Denmark Copenhagen; Catalonia Barcelona;
            Ohio Columbus; Victoria Melbourne; Ontario Toronto; Colorado Denver;
            Portugal Lisbon; Italy Rome; Iran Tehran; Finland Helsinki; Poland Warsaw;
            China Beijing; Wales Cardiff; Belgium Brussels; Oregon Salem
        """),
            "dev": _table("""
            Cuba Havana; Korea Seoul; Tennessee Nashville; Egypt Cairo; Bulgaria
            Sofia; Virginia Richmond; Austria Vienna; Massachusetts Boston; Iraq
            Baghdad; Greece Athens; Bavaria Munich; Sweden Stockholm
        """),
            "test": _table("""
            Texas Austin; Philippines Manila; Kenya Nairobi; Israel Jerusalem; England
            London; Peru Lima; Chile Santiago; Hungary Budapest; Germany Berlin;
            Scotland Edinburgh; Queensland Brisbane; Canada Ottawa
        """),
        },
    ),
    "continents": FactTable(
        "The country {} lies in the continent of",
        {
            "train": _table("""
            Philippines Asia; Ghana Africa; Portugal Europe; Singapore Asia; Tanzania
            Africa; Ethiopia Africa; Sudan Africa; England Europe; Austria Europe;
            Greece Europe; Spain Europe; Kenya Africa; Algeria Africa; Denmark Europe;
            Belgium Europe; Latvia Europe; Cameroon Africa; Iceland Europe; Croatia
            Europe; Korea Asia; Somalia Africa; China Asia; Indonesia Asia; Nigeria
            Africa; Chad Africa; Mongolia Asia; Finland Europe; Niger Africa; Ukraine
            Europe; France Europe; Mali Africa; Egypt Africa; Pakistan Asia; Germany
            Europe; Cambodia Asia; Britain Europe; Lithuania Europe; Bangladesh Asia
        """),
            "dev": _table("""
            Poland Europe; Slovakia Europe; Ireland Europe; Hungary Europe; Senegal
            Africa; Thailand Asia; Zambia Africa; Estonia Europe; Tunisia Africa;
            Japan Asia; Morocco Africa; Taiwan Asia; Switzerland Europe; Malaysia
            Asia; Mozambique Africa; Romania Europe; Bulgaria Europe; Zimbabwe Africa
        """),
            "test": _table("""
            Iran Asia; Serbia Europe; Netherlands Europe; India Asia; Rwanda Africa;
            Namibia Africa; Afghanistan Asia; Scotland Europe; Botswana Africa; Italy
            Europe; Norway Europe; Wales Europe; Nepal Asia; Angola Africa; Vietnam
            Asia; Congo Africa; Libya Africa; Uganda Africa; Sweden Europe; Albania
            Europe
        """),
        },
    ),
    "opposites": FactTable(
        "The opposite of {} is",
        {
            "train": _table("""
            war peace; peace war; true false; false true; friend enemy; enemy friend;
            clean dirty; dirty clean; public private; private public; up down; down
            up; light dark; dark light; day night; night day; begin end; buy sell;
            sell buy; hard soft; soft hard; inside outside; outside inside; before
            after; after before; black white; white black; always never; never always;
            success failure; failure success; maximum minimum; minimum maximum; long
            short; short long; upper lower; lower upper; left right; right left; fast
            slow; slow fast; wide narrow; narrow wide; big small; small big; major
            minor; minor major; increase decrease; decrease increase
        """),
            "dev": _table("""
            good bad; bad good; thick thin; thin thick; strong weak; weak strong;
            sweet bitter; bitter sweet; top bottom; bottom top; east west; west east;
            rich poor; poor rich; more less; less more; win lose; lose win; heavy
            light; wet dry; dry wet; positive negative; negative positive
        """),
            "test": _table("""
            question answer; answer question; push pull; pull push; life death; death
            life; hot cold; cold hot; happy sad; sad happy; internal external;
            external internal; male female; female male; summer winter; winter summer;
            high low; low high; north south; south north; front back; back front; deep
            shallow; shallow deep; young old; old young
        """),
        },
    ),
}


def fact_pairs(name: str, split: str, n: int) -> list[PromptPair]:
    """The first ``n`` pairs of a table, or all where there are fewer.

    Raises:
        TaskError: no such table or split.
    """
    if name not in FACTS or split not in SPLITS:
        raise TaskError(
            f"no facts {name!r} ({split!r}); there are {', '.join(FACTS)}, each with the splits "
            f"{', '.join(SPLITS)}."
        )
    return FACTS[name].pairs(split)[:n]
