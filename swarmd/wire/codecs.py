"""The names of the codecs of tensors; :mod:`swarmd.wire.tensors` has the codecs."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["CODECS", "CODEC_CHOICES", "Codec", "CodecChoice"]

Codec: TypeAlias = Literal["raw", "zstd", "int8"]
CodecChoice: TypeAlias = Literal["auto", "raw", "zstd", "int8"]

CODECS: tuple[Codec, ...] = ("raw", "zstd", "int8")
CODEC_CHOICES: tuple[CodecChoice, ...] = ("auto", *CODECS)
"""What a client may be asked for; `auto` is `raw` or `zstd`, by size and bandwidth."""
