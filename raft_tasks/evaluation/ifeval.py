"""What IFEval's checkers need beside lm-eval: nltk's sentence splitter."""

import sys
from collections.abc import Iterable
from typing import Any

from raft_tasks.errors import InputError

PUNKT_NEEDED = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})  # constraints


def check_ifeval(tasks: Iterable[Any]) -> None:
    """Check, before any work, that the checkers can score every item; and give their language detector a seed.

    lm-eval downloads the sentence splitter itself, where it can. Without it the checkers would stop at the first answer
    that they have to cut into words or sentences.

    Args:
        tasks: lm-eval's task objects.

    Raises:
        InputError: items that need the splitter, and no splitter.
    """
    if not any(name.startswith("lm_eval.tasks.ifeval.") for name in sys.modules):
        return
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws at random, and would score an answer differently from run to run
    docs = (doc for task in tasks for doc in task.eval_docs)
    kinds = PUNKT_NEEDED.intersection(kind for doc in docs for kind in doc.get("instruction_id_list", ()))
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        if kinds:
            raise InputError(
                f"the benchmark ifeval needs nltk's data package punkt_tab for its constraints {sorted(kinds)}, and "
                f"none of {nltk.data.path} has it. `raft mirror ifeval` or `python -m nltk.downloader punkt_tab` "
                "fetches it; without a network set NLTK_DATA to a folder with tokenizers/punkt_tab (the package "
                "llama-index-core ships one, as does "
                "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/tokenizers/punkt_tab.zip). Or take "
                "ifeval out of benchmark.tasks"
            ) from error
