"""A fast tokenizer from GGUF metadata, as the file describes it.

`transformers` builds one too, but adds a BOS and splits no digits for SmolLM2, against the file's
own `add_bos_token` and `pre`. The regular expressions are those of llama.cpp
(`src/llama-vocab.cpp`), which name by `tokenizer.ggml.pre` what the model was trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmd.compute.manifest import write_json
from swarmd.errors import ModelError, UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "build_tokenizer", "read_metadata", "write_tokenizer"]

CONTROL, USER_DEFINED = 3, 4
"""Values of `tokenizer.ggml.token_type`: special, and added but plain (`<think>`)."""


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before BPE: digits one by one, then `splits` in order, then byte-level.

    Without `splits` the byte-level step uses GPT-2's own expression. `add_bos` is llama.cpp's
    default for a file that does not say.
    """

    splits: tuple[str, ...] = ()
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = PreTokenizer()
_DIGITS = PreTokenizer(single_digits=True)
_LLAMA3 = PreTokenizer(
    (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",), ignore_merges=True, add_bos=True
)
_QWEN2 = PreTokenizer((rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",), nfc=True)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = PreTokenizer(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ignore_merges=True,
    add_bos=True,
)
_DEEPSEEK_CODER = PreTokenizer(
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
)
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ\u30a0-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-en"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r", "exaone"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK_V3,
}
"""By `tokenizer.ggml.pre`; an absent entry counts as `default`."""


def write_tokenizer(gguf_path: Path, out: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for a GGUF file into the folder `out`.

    Raises UnsupportedModel for a tokenizer that is not known, ModelError for a broken file.
    """
    metadata = read_metadata(gguf_path)
    build_tokenizer(metadata, gguf_path).save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", _tokenizer_config(metadata))


def read_metadata(gguf_path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file, as Python values. Raises ModelError."""
    from gguf import GGUFReader

    try:
        with gguf_path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{gguf_path} is not a GGUF file; fetch it again")
        reader = GGUFReader(str(gguf_path))  # str, as transformers: convert.py keeps the reader
        return {key: value.contents() for key, value in reader.fields.items()}
    except OSError as exc:
        raise ModelError(f"cannot read {gguf_path}: {exc.strerror or exc}") from exc
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as exc:
        raise ModelError(f"{gguf_path} is damaged or truncated ({exc}); fetch it again") from exc


def build_tokenizer(metadata: dict[str, Any], gguf_path: Path) -> Tokenizer:
    """The tokenizer that the metadata describes; the file is read again only for sentencepiece."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, gguf_path)
    else:
        raise UnsupportedModel(
            f"{gguf_path.name}: its tokenizer is of type {kind!r}, swarmd knows gpt2 and llama; "
            "use the model's Hugging Face folder instead"
        )
    _add_specials(tokenizer, metadata)
    _add_template(tokenizer, metadata)
    return tokenizer


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    how = _pre_tokenizer(metadata)
    vocab = {token: number for number, token in enumerate(_tokens(metadata))}
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=how.ignore_merges)
    except Exception as exc:  # the library raises the bare class for a merge outside the vocabulary
        raise ModelError(f"the GGUF file's merges do not fit its vocabulary: {exc}") from exc
    tokenizer = Tokenizer(model)
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if how.single_digits else []
    steps += [pre_tokenizers.Split(Regex(split), "isolated") for split in how.splits]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not how.splits))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: dict[str, Any], gguf_path: Path) -> Tokenizer:
    from tokenizers import decoders, pre_tokenizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping as library

    architecture, vocabulary, _ = library.get_gguf_tokenizer(str(gguf_path))
    tokenizer, _ = library.convert_gguf_tokenizer(architecture, vocabulary)
    metaspace = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Metaspace)
    if metadata.get("tokenizer.ggml.add_space_prefix") is False and metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    return tokenizer


def _pre_tokenizer(metadata: dict[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise UnsupportedModel(
            f"the GGUF file's pre-tokenizer {name!r} is not known to swarmd "
            f"(known: {', '.join(sorted(PRE_TOKENIZERS))}); use the model's Hugging Face folder"
        ) from None


def _tokens(metadata: dict[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ModelError("the GGUF file holds no vocabulary; fetch it again")
    return tokens


def _add_specials(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Keep control and user-defined tokens whole; they are in the vocabulary, so ids stay."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type") or []
    for token, kind in zip(_tokens(metadata), kinds, strict=False):
        if kind == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])


def _add_template(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Put BOS and EOS around a text exactly where the file wants them."""
    from tokenizers import processors

    ends = [
        _special(metadata, "bos") if _adds(metadata, "bos") else None,
        _special(metadata, "eos") if _adds(metadata, "eos") else None,
    ]
    template = [part for part in (ends[0], "$A", ends[1]) if part]
    used = sorted({end for end in ends if end})
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair=[*template, *("$B:1" if part == "$A" else f"{part}:1" for part in template)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in used],
    )


def _adds(metadata: dict[str, Any], end: str) -> bool:
    """Whether the file wants `end` (`bos` or `eos`) added; where it is silent, as llama.cpp."""
    stated = metadata.get(f"tokenizer.ggml.add_{end}_token")
    if stated is not None:
        return bool(stated) and _special(metadata, end) is not None
    if end == "eos" or _special(metadata, end) is None:
        return False
    return metadata.get("tokenizer.ggml.model") == "llama" or _pre_tokenizer(metadata).add_bos


def _special(metadata: dict[str, Any], name: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    tokens = _tokens(metadata)
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    architecture = metadata.get("general.architecture", "")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds(metadata, "bos"),
        "add_eos_token": _adds(metadata, "eos"),
        "bos_token": _special(metadata, "bos"),
        "eos_token": _special(metadata, "eos"),
        "unk_token": _special(metadata, "unknown"),
        "pad_token": _special(metadata, "padding"),
        "chat_template": metadata.get("tokenizer.chat_template"),
        "model_max_length": metadata.get(f"{architecture}.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    return {key: value for key, value in config.items() if value is not None}
