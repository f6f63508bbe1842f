"""What is sent for the next answer, with a template that keeps texts and one that trims them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from swarmd.client.dialogue import Dialogue


class Codec:
    """A token a character; `joint` characters that stand together are another token."""

    def __init__(self, *, trims: bool = False, joint: str = "") -> None:
        self.trims, self.joint = trims, joint

    def template(self, messages: Sequence[Mapping[str, str]]) -> str:
        texts = [one["content"].strip() if self.trims else one["content"] for one in messages]
        lines = (f"<{one['role'][0]}>{t}\n" for one, t in zip(messages, texts, strict=True))
        return "".join(lines) + "<a>"

    def encode_template(self, text: str) -> list[int]:
        found = []
        while text:
            if self.joint and text.startswith(self.joint):
                found.append(0x110000)
                text = text[len(self.joint) :]
            else:
                found.append(ord(text[0]))
                text = text[1:]
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.joint if one == 0x110000 else chr(one) for one in token_ids)


def ids(codec: Codec, text: str) -> tuple[int, ...]:
    return tuple(codec.encode_template(text))


def test_only_what_is_new_is_sent() -> None:
    codec = Codec()
    dialogue = Dialogue(codec, "be kind")
    first = dialogue.ask("one")
    assert first.held == 0
    assert first.token_ids == ids(codec, "<s>be kind\n<u>one\n<a>")
    dialogue.answered("one", first, "two", ids(codec, "two"))
    second = dialogue.ask("three")
    assert second.token_ids == ids(codec, "<s>be kind\n<u>one\n<a>two\n<u>three\n<a>")
    assert second.held == len(first.token_ids) + 2  # the last token was never sent


def test_tokens_of_an_answer_stay_as_the_model_chose_them() -> None:
    """The model spelled `ab` in two tokens where the tokenizer takes one: it is not sent anew."""
    codec = Codec(joint="ab")
    dialogue = Dialogue(codec)
    prompt = dialogue.ask("x")
    dialogue.answered("x", prompt, "abc", [ord("a"), ord("b"), ord("c")])
    following = dialogue.ask("y")
    assert following.held == len(prompt.token_ids) + 2
    assert codec.decode(following.token_ids) == "<u>x\n<a>abc\n<u>y\n<a>"


@pytest.mark.parametrize("answer", [" padded ", "\n"])
def test_a_template_that_trims_cuts_back_to_what_is_common(answer: str) -> None:
    codec = Codec(trims=True)
    dialogue = Dialogue(codec)
    prompt = dialogue.ask("x")
    dialogue.answered("x", prompt, answer, ids(codec, answer))
    following = dialogue.ask("y")
    assert following.token_ids == ids(codec, f"<u>x\n<a>{answer.strip()}\n<u>y\n<a>")
    held = (*prompt.token_ids, *ids(codec, answer))[: following.held]
    assert following.token_ids[: following.held] == held
    assert following.held >= len(prompt.token_ids)


def test_text_that_the_answer_does_not_tell_is_tokenized_anew() -> None:
    """Half a character is a token without text: such tokens are not taken for the text."""
    codec = Codec()
    dialogue = Dialogue(codec)
    prompt = dialogue.ask("x")
    dialogue.answered("x", prompt, "a", [ord("a"), ord("?")])
    following = dialogue.ask("y")
    assert codec.decode(following.token_ids) == "<u>x\n<a>a\n<u>y\n<a>"
    assert following.held == len(prompt.token_ids) + 1


def test_undo_reset_and_another_system_message() -> None:
    codec = Codec()
    dialogue = Dialogue(codec, "s")
    assert dialogue.undo() is None
    first = dialogue.ask("one")
    dialogue.answered("one", first, "1", ids(codec, "1"))
    second = dialogue.ask("two")
    dialogue.answered("two", second, "2", ids(codec, "2"))
    assert dialogue.undo() == "two"
    again = dialogue.ask("two")
    assert again.token_ids == second.token_ids
    assert again.held == len(again.token_ids) - 1  # one has to be sent, for its logits
    dialogue.system = "other"
    assert dialogue.ask("two").held == len("<s>")
    dialogue.reset()
    assert dialogue.messages == [{"role": "system", "content": "other"}]
    dialogue.forget_session()
    assert dialogue.ask("two").held == 0


def test_an_answer_of_no_tokens_is_no_turn_but_the_session_holds_its_prompt() -> None:
    codec = Codec()
    dialogue = Dialogue(codec)
    first = dialogue.ask("one")
    dialogue.answered("one", first, "long answer", ids(codec, "long answer"))
    silent = dialogue.ask("two")
    dialogue.answered("two", silent, "", [])
    assert [one["content"] for one in dialogue.messages] == ["one", "long answer"]
    # the session was cut to where `silent` began: only that is held
    assert dialogue.ask("zoo").held == len(silent.token_ids) - len("two\n<a>")
