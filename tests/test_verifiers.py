"""Rules that judge replies: what each accepts, against public verdicts where there are any."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest

from models.errors import InputError
from models.rewards import Reward, Verifier, VerifierKind
from tasks.core.verifiers import VERIFIERS, verifiable_reward, verify
from tasks.core.verifiers.answers import chosen_letter
from tasks.core.verifiers.instruction_rules import RULES, count_sentences
from tasks.core.verifiers.instructions import check_instructions
from tasks.core.verifiers.language import LANGUAGES, is_in_language
from tasks.core.verifiers.numbers import final_number
from tests.tiny import REWARDS

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def shared_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a public file, where the machine has it."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not on this machine")
    return [json.loads(line) for line in (SHARED / name).read_text(encoding="utf-8").split("\n") if line]


def judged(rule: dict[str, Any], reply: str, **row: Any) -> float:
    return verify(Verifier.model_validate(rule), [reply], [{"prompt": [], "answer": [], "kind": "all"} | row])[0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("It is 3, then 4.", 4),
        ("<<16-3=13>>13 eggs\nA: 13", 13),
        ("#### 1,234,567", 1_234_567),
        ("#### $2,125.50", Fraction("2125.5")),
        ("The answer is 42.", 42),
        ("Final answer: **7** apples out of 9", 7),
        ("The answer is 5 + 3 = 8.", 8),
        (r"so \boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{12} is right, unlike 13", 12),
        ("A: 7/14", Fraction(1, 2)),
        ("A: 50%", 50),
        ("A: -10", -10),
        ("A: -$10", -10),
        ("A: −3", -3),
        ("10-3", 3),
        ("from 2019-2023", 2023),
        ("It costs .5", Fraction(1, 2)),
        ("about 1.5e3 metres", 1500),
        ("1,2 and 3,4", 4),
        ("A: unknown", None),
        ("No number here", None),
        ("", None),
        ("A: 1/0", None),
        ("3" * 9000, None),
        ("1e99999999", 99_999_999),
    ],
)
def test_the_number_that_a_text_settles_on(text: str, number: Fraction | int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize("kind", ["exact_number", "math_verify"])
def test_verdicts_on_published_solutions_are_reproduced(kind: str) -> None:
    rows = shared_rows("gsm8k/example_model_solutions.jsonl")
    wrong, count = [], 0
    for row in rows if kind == "exact_number" else rows[::20]:
        answer = row["ground_truth"].rpartition("A: ")[2]
        for solution in (value for value in row.values() if isinstance(value, dict)):
            count += 1
            if judged({"kind": kind}, solution["solution"], answer=[answer]) != solution["is_correct"]:
                wrong.append(solution["solution"])
    assert not wrong
    assert count == {"exact_number": 5276, "math_verify": 264}[kind]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (C) ", "C"),
        ("B.", "B"),
        ("D) Paris", "D"),
        ("**B**", "B"),
        ("B: because it is", "B"),
        ("The answer is C.", "C"),
        ("The answer is (c), not (B).", "C"),
        ("Answer: **D**", "D"),
        (r"So \boxed{A}", "A"),
        ("I think it is (A) or rather (B)", "B"),
        ("Clearly **C) Rome**", "C"),
        ("A good question", None),
        ("The answer is Paris", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_option_that_a_text_settles_on(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter


@pytest.mark.parametrize(
    ("rule", "reply", "reward"),
    [
        ({"kind": "exact_answer"}, " 4 \n", 1),
        ({"kind": "exact_answer"}, "4.0", 0),
        ({"kind": "exact_number"}, "So 4.0", 1),
        ({"kind": "exact_number"}, "nothing", 0),
        ({"kind": "math_verify"}, r"$\frac{8}{2}$", 1),
        ({"kind": "math_verify"}, "5", 0),
        ({"kind": "exact_number", "column": "solution"}, "5", 1),
        ({"kind": "choice", "column": "letter"}, "(b) Rome", 1),
        ({"kind": "choice", "column": "letter"}, "A", 0),
        ({"kind": "regex", "pattern": r"(?i)\bsure\b"}, "Sure, I can", 1),
        ({"kind": "regex", "pattern": r"^\d+$"}, "4 apples", 0),
        ({"kind": "format", "shape": "think"}, "<think>hm</think>four", 1),
        ({"kind": "format", "shape": "think"}, "<think>hm</think>", 0),
        ({"kind": "format", "shape": "think"}, "hm</think>four", 0),
        ({"kind": "format", "shape": "think"}, "<think>a<think>b</think>four", 0),
        ({"kind": "format", "shape": "think"}, "First <think>hm</think>four", 0),
        ({"kind": "format", "shape": "think_answer"}, "<think>hm\n</think>\n<answer>4</answer>\n", 1),
        ({"kind": "format", "shape": "think_answer"}, "<think>hm</think>4", 0),
        ({"kind": "format", "shape": "think_answer"}, "<think>hm</think><answer></answer>", 0),
        ({"kind": "format", "shape": "think_answer"}, "<think>hm</think><answer>4</answer> indeed", 0),
        ({"kind": "format", "shape": "boxed"}, r"so \boxed{\frac{1}{2}}", 1),
        ({"kind": "format", "shape": "boxed"}, r"so \boxed{}", 0),
        ({"kind": "format", "shape": "json"}, ' {"a": [1, null]}\n', 1),
        ({"kind": "format", "shape": "json"}, 'Here: {"a": 1}', 0),
        ({"kind": "format", "shape": "json"}, "NaN", 0),
        ({"kind": "format", "shape": "json"}, "[" * 100_000, 0),
        ({"kind": "length", "min_words": 4}, "one two three", 0.75),
        ({"kind": "length", "min_words": 4}, "one two three four", 1),
        ({"kind": "length", "min_words": 4}, "", 0),
        ({"kind": "length", "max_words": 2}, "one two", 1),
        ({"kind": "length", "max_words": 2}, "one two three", 0.5),
        ({"kind": "length", "max_words": 2}, "one two three four", 0),
        ({"kind": "length", "max_words": 2}, "one two three four five", 0),
        ({"kind": "length", "min_words": 2, "max_words": 2}, "one two", 1),
    ],
)
def test_what_a_reply_gets(rule: dict[str, Any], reply: str, reward: float) -> None:
    row = {"answer": ["4", "four"], "extra": {"solution": 5, "letter": "B"}}
    assert judged(rule, reply, **row) == reward
    # The same function serves the trainer, which hands every column over as a list.
    function = verifiable_reward(Reward.model_validate(rule))
    done = [[{"role": "assistant", "content": reply}]]
    given = function(completions=done, answer=[row["answer"]], solution=[5], letter=["B"], trainer_state=None)
    assert given == [reward]


def test_every_kind_of_verifier_has_a_rule() -> None:
    assert set(get_args(VerifierKind)) == VERIFIERS <= set(REWARDS)


WORDS = "length_constraints:number_words"
LINES = "one two three four five six seven eight nine ten"
OBEYED: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["mom", "mother"]}, "My MOM is a mother.", "My mom is nice."),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "at least"}, "War and war.", "War."),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": "less than"}, "War.", "War, war."),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "Rocket science", "They ROCK."),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "#a #b", "#a"),
    ("keywords:letter_frequency", {"letter": "q", "let_frequency": 2, "let_relation": "less than"}, "Q", "Qq"),
    ("language:response_language", {"language": "kn"}, "ನಮಸ್ಕಾರ, ನೀವು ಹೇಗಿದ್ದೀರಿ?", "Hello, how are you?"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        "Dr. Li paid 2.50 dollars. Why? Who knows!",
        "Dr. Li left. Mr. B. stayed.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.\n***", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 10, "relation": "at least"}, LINES, LINES[:-4]),
    ("length_constraints:number_words", {"num_words": 10, "relation": "less than"}, LINES[:-4], LINES),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "मौसम अच्छा", "मौसम अच्छा है"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"},
        "One.\n\n'Weekend', they say.",
        "Weekend.\n\nOne.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\nP. S. Write!", "Bye. Postscript."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. Write!", "Bye.\nP.S. Write!"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nPart 2\nb",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '```json\n{"a": }\n```'),
    ("detectable_format:title", {}, "<<A poem>>\nRoses", "<< >>\nRoses"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a poem."}, "write a poem.\nRoses", "Roses"),
    ("startend:end_checker", {"end_phrase": "Anything else?"}, 'Yes. "Anything ELSE?"', "Anything else? Yes."),
    ("startend:quotation", {}, ' "All of it." ', '"Half of it", he said.'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "STOP the WELL-KNOWN dog",
        "STOP the dog",
    ),
    ("change_case:english_capital", {}, "THIS IS THE END.", "This is THE END."),
    ("change_case:english_lowercase", {}, "this is the end.", "This is the end."),
    ("punctuation:no_comma", {}, "Red and green.", "Red, green."),
]


@pytest.mark.parametrize(("name", "given", "good", "bad"), OBEYED)
def test_instructions_are_obeyed_or_not(name: str, given: dict[str, Any], good: str, bad: str) -> None:
    # A file that was written with one type a column holds every argument, most of them null.
    asked = {"instruction_id_list": [name], "kwargs": [dict.fromkeys(["num_words", "language"]) | given]}
    check_instructions(asked)
    assert [judged({"kind": "instructions"}, reply, extra=asked) for reply in (good, bad, " ")] == [1, 0, 0]


def test_every_instruction_has_its_examples() -> None:
    assert {name for name, *_ in OBEYED} == set(RULES)
    assert len(RULES) == 25


def test_half_the_instructions_obeyed_is_half_the_reward() -> None:
    asked = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    assert judged({"kind": "instructions"}, "No comma", extra=asked) == 0.5


def test_the_benchmarks_own_rows_can_be_judged() -> None:
    rows = shared_rows("ifeval/input_data.jsonl")
    for row in rows:
        check_instructions(row)
        further = {key: row[key] for key in ("instruction_id_list", "kwargs")}
        assert 0 <= judged({"kind": "instructions"}, row["prompt"], extra=further) <= 1
    assert {name for row in rows for name in row["instruction_id_list"]} == set(RULES)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({}, "column 'instruction_id_list': got null"),
        ({"instruction_id_list": []}, "it must be a list of ids"),
        ({"instruction_id_list": ["a"]}, "column 'kwargs': got null; it must be a list of arguments for each of the 1"),
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}, r"column 'kwargs\[0\]': got null"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "a"}]}, "a list of texts here"),
        (
            {"instruction_id_list": ["startend:end_checker"], "kwargs": [{}]},
            r"kwargs\[0\].end_phrase': got null; .*a text",
        ),
        (
            {
                "instruction_id_list": [WORDS],
                "kwargs": [{"num_words": 3, "relation": "at"}],
            },
            "takes 'at least' or 'less than' here",
        ),
        (
            {"instruction_id_list": [WORDS], "kwargs": [{"num_words": "3"}]},
            "num_words': got '3'; .* a number here",
        ),
        (
            {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]},
            "language of ar, bg",
        ),
    ],
)
def test_rows_whose_instructions_cannot_be_judged_are_refused(row: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        check_instructions(row)


SENTENCES = {
    "en": "The weather is nice today, and we are going to the lake with our friends.",
    "de": "Das Wetter ist heute schön, und wir gehen mit unseren Freunden an den See.",
    "fr": "Il fait beau, et nous allons au lac avec des amis qui sont dans la ville.",
    "es": "Hoy hace buen tiempo y vamos al lago con los amigos de la ciudad.",
    "pt": "Hoje o tempo está bom e não vamos ao lago com os amigos da cidade.",
    "it": "Oggi il tempo è bello e non andiamo al lago con gli amici della città.",
    "fi": "Sää on tänään hyvä ja menemme järvelle, mutta ystävät eivät ole vielä täällä.",
    "sw": "Hali ya hewa ni nzuri leo na tunaenda ziwani kwa miguu katika mji.",
    "vi": "Hôm nay thời tiết đẹp và chúng tôi đi ra hồ của thành phố.",
    "nl": "Het weer is vandaag mooi en wij gaan met de vrienden naar een meer.",
    "hi": "आज मौसम अच्छा है और हम दोस्तों के साथ झील पर जा रहे हैं।",
    "mr": "आज हवामान छान आहे आणि आम्ही मित्रांसोबत तलावावर जात आहोत.",
    "ne": "आज मौसम राम्रो छ र हामी साथीहरूको लागि ताल जाँदैछौं।",
    "bn": "আজ আবহাওয়া ভালো এবং আমরা হ্রদে যাচ্ছি।",
    "gu": "આજે હવામાન સારું છે અને અમે તળાવ પર જઈએ છીએ.",
    "pa": "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ ਅਤੇ ਅਸੀਂ ਝੀਲ ਤੇ ਜਾ ਰਹੇ ਹਾਂ।",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ ಮತ್ತು ನಾವು ಕೆರೆಗೆ ಹೋಗುತ್ತಿದ್ದೇವೆ.",
    "ta": "இன்று வானிலை நன்றாக உள்ளது, நாங்கள் ஏரிக்குச் செல்கிறோம்.",
    "te": "ఈ రోజు వాతావరణం బాగుంది, మేము సరస్సుకు వెళ్తున్నాము.",
    "th": "วันนี้อากาศดีและเรากำลังไปทะเลสาบ",
    "ko": "오늘은 날씨가 좋아서 우리는 호수에 갑니다.",
    "ar": "الطقس جميل اليوم ونحن نذهب إلى البحيرة مع الأصدقاء في المدينة.",
    "fa": "امروز هوا خوب است و ما با دوستان به دریاچه می رویم.",
    "ur": "آج موسم اچھا ہے اور ہم دوستوں کے ساتھ جھیل پر جا رہے ہیں۔",
    "ru": "Сегодня хорошая погода, и мы идём на озеро с друзьями, как и вчера.",
    "bg": "Днес времето е хубаво и ще отидем на езерото с приятели от града.",
}  # fmt: skip


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_a_language_is_told_from_all_others(language: str) -> None:
    assert [code for code, text in SENTENCES.items() if is_in_language(text, language)] == [language]
    assert not is_in_language("", language)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("One", 1), ("One. Two", 2), ("It is 3.5 km.", 1), ("Wait... what?!", 2), ("1. One.\n2. Two.", 2),
     ('He said "No." Then left.', 2), ("E.g. this, i.e. that, is one.", 1)],
)  # fmt: skip
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count
