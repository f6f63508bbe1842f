"""An answer whose last tokens are withdrawn is, in the end, the answer without them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.client.answer import AnswerText


class Letters:
    """Token n is the n-th letter; odd ones come out together with the next (a part of a char)."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        self._held += chr(97 + token_id)
        if token_id % 2:
            return ""
        text, self._held = self._held, ""
        return text


def whole(tokens: list[int], stops: list[str]) -> tuple[str, list[int]]:
    answer = AnswerText(Letters, stops)
    for token in tokens:
        answer.push(token)
        if answer.stopped:
            break
    answer.finish()
    return answer.text, answer.token_ids


TOKENS = st.lists(st.integers(0, 5), max_size=20)


@given(TOKENS, st.integers(0, 20), TOKENS, st.sampled_from([[], ["ca"], ["aa", "ec"]]))
def test_withdrawing_gives_the_text_of_what_holds(
    first: list[int], kept: int, then: list[int], stops: list[str]
) -> None:
    answer, out = AnswerText(Letters, stops), ""
    for token in first:
        out += answer.push(token)
        if answer.stopped:
            break
    kept = min(kept, len(answer.token_ids))
    wrong = answer.withdraw(kept)
    out = out[: len(out) - len(wrong)]
    assert out == answer.text
    if not answer.stopped:
        for token in then:
            out += answer.push(token)
            if answer.stopped:
                break
    out += answer.finish()
    assert out == answer.text
    assert (answer.text, answer.token_ids) == whole([*first[:kept], *then], stops)
