"""What sentences of claims tell, in either language."""

import re

from headscope.studies.bilingual import Both


def same_numbers(words: Both) -> bool:
    """Whether both languages tell the same numbers, in whatever order, and end as sentences do.

    Japanese writes "one head" as 1個のヘッド and "two heads" as 2つのヘッド.
    """
    japanese = re.sub(r"1個のヘッド|2つのヘッド", "", words.ja)
    found = [sorted(re.findall(r"−?\d+(?:\.\d+)?%?", text)) for text in (words.en, japanese)]
    return found[0] == found[1] and words.en.endswith(".") and words.ja.endswith("。")
