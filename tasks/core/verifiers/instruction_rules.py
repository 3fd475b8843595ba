"""IFEval's instructions, one function each: whether a reply obeys it, given the arguments that the row names.

Zhou et al. 2023 (arXiv 2311.07911, table 1). Verdicts follow the benchmark's own checks, with two simpler rules in
place of trained ones: where sentences end, and which language a text is in (`language.py`).
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from tasks.core.verifiers.language import is_in_language
from tasks.core.verifiers.shapes import is_json

Relation = Literal["at least", "less than"]
Obeys = Callable[..., bool]

CONSTRAINED_REPLIES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)|[。！？।]")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|[Ee]\.g|[Ii]\.e|[A-Z])|^\s*\d+)$", re.MULTILINE)
_FENCE = re.compile(r"```(?:json)?(.*?)(?:```)?", re.IGNORECASE | re.DOTALL)


def _holds(count: int, relation: Relation, bound: float) -> bool:
    return count < bound if relation == "less than" else count >= bound


def count_sentences(text: str) -> int:
    """Stretches up to `.`, `!` or `?` before a space, but not in an abbreviation, an initial or a list's number."""
    start = count = 0
    for end in _SENTENCE_END.finditer(text):
        if not (end[0] == "." and _ABBREVIATION.search(text[start : end.start()])):
            start, count = end.end(), count + 1
    return count + bool(text[start:].strip())


def _existence(reply: str, *, keywords: list[str]) -> bool:
    return all(re.search(re.escape(keyword), reply, re.IGNORECASE) for keyword in keywords)


def _frequency(reply: str, *, keyword: str, frequency: float, relation: Relation) -> bool:
    return _holds(len(re.findall(re.escape(keyword), reply, re.IGNORECASE)), relation, frequency)


def _forbidden_words(reply: str, *, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(reply: str, *, letter: str, let_frequency: float, let_relation: Relation) -> bool:
    return _holds(reply.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(reply: str, *, language: str) -> bool:
    return is_in_language(reply, language)


def _number_sentences(reply: str, *, num_sentences: float, relation: Relation) -> bool:
    return _holds(count_sentences(reply), relation, num_sentences)


def _number_paragraphs(reply: str, *, num_paragraphs: float) -> bool:
    """Paragraphs are divided by `***`; an empty one may only come first or last, and does not count."""
    parts = [part.strip() for part in reply.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def _number_words(reply: str, *, num_words: float, relation: Relation) -> bool:
    """Words are runs of letters and digits; signs that join a letter, such as Hindi's vowels, do not divide them."""
    letters = "".join(letter for letter in reply if not unicodedata.category(letter).startswith("M"))
    return _holds(len(re.findall(r"\w+", letters)), relation, num_words)


def _nth_paragraph_first_word(reply: str, *, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
    """Paragraphs are divided by empty lines here; the first word is compared up to its punctuation."""
    paragraphs = [part.strip() for part in reply.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= len(paragraphs):
        return False
    first = paragraphs[int(nth_paragraph) - 1].split()[0].lstrip("'\"").lower()
    return re.split(r"[.,?!'\"]", first)[0] == first_word.lower()


def _number_placeholders(reply: str, *, num_placeholders: float) -> bool:
    return len(re.findall(r"\[.*?\]", reply)) >= num_placeholders


def _postscript(reply: str, *, postscript_marker: str) -> bool:
    """The marker may have spaces between its letters; `P.P.S` may lack its last dot."""
    letters = [re.escape(letter) for letter in postscript_marker.lower() if not letter.isspace()]
    return re.search(r"\s?".join(letters), reply.lower()) is not None


def _number_bullet_lists(reply: str, *, num_bullets: float) -> bool:
    """Bullets are lines that begin with `* ` or `-`."""
    return len(re.findall(r"^\s*(?:\*[^*\n]|-)", reply, re.MULTILINE)) == num_bullets


def _constrained_response(reply: str) -> bool:
    return any(option in reply for option in CONSTRAINED_REPLIES)


def _number_highlighted_sections(reply: str, *, num_highlights: float) -> bool:
    """Highlights are `*one*` or `**one**`, each within a line."""
    return len(re.findall(r"\*\*[^*\n]*[^*\s][^*\n]*\*\*|\*[^*\n]*[^*\s][^*\n]*\*", reply)) >= num_highlights


def _multiple_sections(reply: str, *, section_spliter: str, num_sections: float) -> bool:
    """Sections begin with the word and a number: `Section 1`."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", reply)) >= num_sections


def _json_format(reply: str) -> bool:
    """JSON, with or without a fence around it."""
    fenced = _FENCE.fullmatch(reply.strip())
    return is_json(fenced[1] if fenced else reply)


def _title(reply: str) -> bool:
    return re.search(r"<<[^\n]*[^\s<>][^\n]*>>", reply) is not None


def _two_responses(reply: str) -> bool:
    """Replies are divided by `******`."""
    parts = [part.strip() for part in reply.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeat_prompt(reply: str, *, prompt_to_repeat: str) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(reply: str, *, end_phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(reply: str) -> bool:
    return re.fullmatch(r'\s*".*"\s*', reply, re.DOTALL) is not None


def _capital_word_frequency(reply: str, *, capital_frequency: float, capital_relation: Relation) -> bool:
    words = re.findall(r"\w+(?:[-'’]\w+)*", reply)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english_capital(reply: str) -> bool:
    return reply.isupper() and is_in_language(reply, "en")


def _english_lowercase(reply: str) -> bool:
    return reply.islower() and is_in_language(reply, "en")


def _no_comma(reply: str) -> bool:
    return "," not in reply


RULES: dict[str, Obeys] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""IFEval's ids, and the rule of each; its arguments are the function's keywords."""
