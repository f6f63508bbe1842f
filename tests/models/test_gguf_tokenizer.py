"""Tokenizers from GGUF metadata, checked against the file, the libraries and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarmd.compute.gguf_tokenizer import (
    PRE_TOKENIZERS,
    build_tokenizer,
    read_metadata,
    write_tokenizer,
)
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import ModelError, UnsupportedModel

TEXTS = [
    "Hello 12345 world", "The year is 2026.", "it's  we'll\n\n  x\t\ty", "naïve café ü 北京 🎉",
    "def f(x):\n    return x+1\n", " leading", "trailing ", "", "<|im_start|>user\nhi<|im_end|>\n",
    "½ ² Ⅷ ٣٤٥",
]  # fmt: skip


def byte_level(**changes: Any) -> dict[str, Any]:
    """Metadata of a vocabulary of single bytes, two merges and three added tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "Ġa", "12", "<s>", "</s>", "<think>"]
    kinds = [1] * (len(tokens) - 3) + [3, 3, 4]
    metadata = {
        "general.architecture": "llama", "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": ["Ġ a", "1 2"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }  # fmt: skip
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    return {key: value for key, value in metadata.items() if value is not None}


def pieces(text: str, **changes: Any) -> list[str]:
    return build_tokenizer(byte_level(**changes), Path("x.gguf")).encode(text).tokens


def test_digits_are_joined_or_split_as_the_file_says() -> None:
    assert pieces("a 12", pre="gpt-2") == ["a", "Ġ", "12"]
    assert pieces("a 12", pre=None) == ["a", "Ġ", "12"]
    assert pieces("a 12", pre="smollm") == ["a", "Ġ", "1", "2"]
    assert pieces("a 12", pre="qwen2") == ["a", "Ġ", "1", "2"]
    assert pieces("12 a", pre="llama-bpe", add_bos_token=False) == ["12", "Ġa"]


def test_bos_and_eos_only_where_the_file_wants_them() -> None:
    assert pieces("a") == ["a"]
    assert pieces("a", add_bos_token=True) == ["<s>", "a"]
    assert pieces("a", add_bos_token=True, add_eos_token=True) == ["<s>", "a", "</s>"]
    assert pieces("a", add_bos_token=True, bos_token_id=None) == ["a"]
    assert pieces("a", pre="llama-bpe") == ["<s>", "a"]
    assert pieces("a", pre="llama-bpe", add_bos_token=False) == ["a"]
    tokenizer = build_tokenizer(byte_level(add_bos_token=True), Path("x.gguf"))
    assert tokenizer.encode("a", "a").tokens == ["<s>", "a", "<s>", "a"]
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_added_tokens_stay_whole_and_keep_their_ids() -> None:
    metadata = byte_level()
    tokenizer = build_tokenizer(metadata, Path("x.gguf"))
    assert tokenizer.get_vocab_size() == len(metadata["tokenizer.ggml.tokens"])
    encoded = tokenizer.encode("a<s>a<think>")
    assert encoded.tokens == ["a", "<s>", "a", "<think>"]
    assert tokenizer.decode(encoded.ids) == "aa<think>"


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loses_nothing(pre: str) -> None:
    tokenizer = build_tokenizer(byte_level(pre=pre, add_bos_token=False), Path("x.gguf"))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "text", "parts"),
    [
        ("llama-bpe", "a1234's", ["a", "123", "4", "'s"]),
        ("qwen2", "a1234 b", ["a", "1", "2", "3", "4", "Ġb"]),
        ("deepseek-v3", "a1234", ["a", "123", "4"]),
        ("deepseek-coder", "a12\nb", ["a", "1", "2", "Ċ", "b"]),
        ("smollm", "ab 12", ["ab", "Ġ", "1", "2"]),
        ("tekken", "aB12", ["a", "B", "1", "2"]),
        ("gpt-2", "ab 12", ["ab", "Ġ12"]),
    ],
)
def test_how_text_is_cut(pre: str, text: str, parts: list[str]) -> None:
    tokenizer = build_tokenizer(byte_level(pre=pre), Path("x.gguf"))
    assert [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == parts


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'viking'"):
        pieces("a", pre="viking")
    with pytest.raises(UnsupportedModel, match="'bert'"):
        pieces("a", model="bert")
    with pytest.raises(ModelError, match="no vocabulary"):
        pieces("a", tokens=None)
    with pytest.raises(ModelError, match="merges"):
        pieces("a", merges=["never seen"])


@pytest.mark.parametrize("content", [b"", b"GGUF", b"ZIP!" + b"\0" * 100, b"GGUF" + b"\xff" * 64])
def test_files_that_are_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.gguf"):
        read_metadata(path)
    with pytest.raises(ModelError, match="cannot read"):
        read_metadata(tmp_path / "none.gguf")


def sentencepiece_gguf(path: Path, **flags: bool) -> Path:
    """A vocabulary of the sentencepiece kind, with scores and byte tokens, and no weights."""
    from gguf import GGUFWriter

    words = ["▁", "a", "b", "ab", "▁ab", "▁a", "1", "2", "12"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words]
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(len(words), 0, -1)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in flags.items():
        getattr(writer, name)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sentencepiece_follows_add_bos_token(tmp_path: Path) -> None:
    for flags, first in [({}, ["<s>"]), ({"add_add_bos_token": False}, [])]:
        path = sentencepiece_gguf(tmp_path / "x.gguf", **flags)
        tokenizer = build_tokenizer(read_metadata(path), path)
        assert tokenizer.encode("ab 12").tokens == [*first, "▁ab", "▁", "12"]
        assert tokenizer.decode(tokenizer.encode("ab 12").ids) == "ab 12"
        assert tokenizer.encode("ü").tokens[-2:] == ["<0xC3>", "<0xBC>"]


def test_sentencepiece_without_a_prefix_space(tmp_path: Path) -> None:
    path = sentencepiece_gguf(tmp_path / "x.gguf", add_add_space_prefix=False)
    tokenizer = build_tokenizer(read_metadata(path), path)
    assert tokenizer.encode("ab ab").tokens == ["<s>", "ab", "▁ab"]
    assert tokenizer.decode(tokenizer.encode("ab ab").ids) == "ab ab"


def test_written_files_load_as_a_transformers_tokenizer(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    path = sentencepiece_gguf(tmp_path / "x.gguf", add_add_bos_token=False)
    write_tokenizer(path, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert tokenizer("ab")["input_ids"] == [263]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>", "</s>", "<unk>",
    )  # fmt: skip
    assert tokenizer.model_max_length == 64


def test_smollm2_digits_one_by_one_and_no_bos(smollm: ModelFolder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm.path))
    assert tokenizer.tokenize("in 2026") == ["in", "Ġ", "2", "0", "2", "6"]
    assert tokenizer("Hello")["input_ids"] == [19556]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat)["input_ids"].count(tokenizer.bos_token_id) == chat.count("<|im_start|>")


def test_smollm2_agrees_with_llama_cpp(smollm: ModelFolder, smollm_gguf: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from tokenizers import Tokenizer

    theirs = llama_cpp.Llama(model_path=str(smollm_gguf), vocab_only=True, verbose=False)
    ours = Tokenizer.from_file(str(smollm.path / "tokenizer.json"))
    for text in TEXTS:
        expected = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert ours.encode(text).ids == expected, text
