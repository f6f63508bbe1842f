"""Opening model folders: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.compute.model_folder import (
    UNLIMITED_POSITIONS,
    block_prefix,
    open_folder,
    read_header,
    safe_name,
)
from swarmd.errors import BlocksOutOfRange, ModelError


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    for key, item in changes.items():
        value.pop(key, None) if item is None else value.update({key: item})
    path.write_text(json.dumps(value))


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        open_folder(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_describes_the_model(tiny: Path) -> None:
    folder = open_folder(tiny)
    assert (folder.name, folder.n_blocks, folder.hidden_size) == ("tiny-llama", 6, 32)
    assert (folder.model_type, folder.max_positions) == ("llama", 128)
    assert folder.prefix == "model.layers" and len(folder.files) > 3


def test_every_tensor_is_of_one_block_or_of_the_client(tiny: Path) -> None:
    folder = open_folder(tiny)
    blocks = [folder.block_tensors(Span(n, n + 1)) for n in range(6)]
    assert {len(block) for block in blocks} == {9}
    assert set(folder.client_tensors()) == {
        "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    }  # fmt: skip
    together = dict(folder.client_tensors())
    for block in blocks:
        assert not together.keys() & block.keys()
        together |= block
    assert together == folder.weight_map
    assert folder.block_tensors(Span(0, 6)).keys() == set().union(*blocks)
    with pytest.raises(BlocksOutOfRange, match="0:6"):
        folder.block_tensors(Span(5, 7))


def test_sizes_come_from_the_headers(tiny: Path) -> None:
    folder = open_folder(tiny)
    parameters = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert [folder.block_parameters(n) for n in range(6)] == [parameters] * 6
    assert folder.block_bytes(0) == 4 * parameters


def test_a_single_file_is_the_same_model_with_another_id(tiny: Path, single_source: Path) -> None:
    many, one = open_folder(tiny), open_folder(single_source)
    assert one.weight_map.keys() == many.weight_map.keys()
    assert one.files_for(one.weight_map) == {"model.safetensors"}
    assert one.model_id != many.model_id


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "gpt_neox", "gemma3"])
def test_block_names_of_other_families(family: str, tmp_path: Path) -> None:
    import transformers as t

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
    deep = {"num_hidden_layers": 3, "intermediate_size": 64, **sizes}
    config = {
        "gpt2": lambda: t.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=64),
        "opt": lambda: t.OPTConfig(**deep, ffn_dim=64, word_embed_proj_dim=32),
        "bloom": lambda: t.BloomConfig(n_layer=3, n_head=4, hidden_size=32, vocab_size=64),
        "gpt_neox": lambda: t.GPTNeoXConfig(**deep),
        "gemma3": lambda: t.Gemma3Config(
            text_config={**deep, "num_key_value_heads": 2, "head_dim": 8},
            vision_config={**deep, "image_size": 28, "patch_size": 14},
        ),
    }[family]()
    if family == "gemma3":
        model = t.Gemma3ForConditionalGeneration(config)
    else:
        model = t.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(str(tmp_path), max_shard_size="50KB")
    folder = open_folder(tmp_path)
    assert (folder.n_blocks, folder.hidden_size) == (3, 32)
    assert all(folder.block_parameters(n) > 0 for n in range(3))
    outside = {"opt": "model.decoder.layers", "gemma3": "language_model"}.get(family, folder.prefix)
    assert outside in folder.prefix and folder.client_tensors()
    if family == "gemma3":
        assert any("vision" in name for name in folder.client_tensors())
    if family == "bloom":
        assert folder.max_positions == UNLIMITED_POSITIONS


def test_the_block_prefix_of_several_stacks() -> None:
    names = [f"visual.blocks.{n}.w" for n in range(4)] + [f"model.layers.{n}.w" for n in range(5)]
    assert block_prefix(names, 4) == ("model.layers", [])
    assert block_prefix(names, 6) == ("model.layers", [5])
    assert block_prefix(["model.norm.weight"], 2) == ("", [0, 1])
    experts = [f"model.layers.{n}.mlp.experts.{e}.w" for n in range(2) for e in range(8)]
    assert block_prefix(experts, 2) == ("model.layers", [])


def test_extra_prediction_layers_belong_to_nobody(tiny: Path) -> None:
    edit(tiny / "config.json", num_hidden_layers=5)
    folder = open_folder(tiny)
    assert not any("layers.5." in name for name in folder.client_tensors())
    assert not any("layers.5." in name for name in folder.block_tensors(Span(0, 5)))


@pytest.mark.parametrize(
    ("text", "name"),
    [("a b/ü", "a-b"), ("../..", "model"), ("x" * 99, "x" * 64), ("Llama-3.1_8B", "Llama-3.1_8B")],
)
def test_names_are_safe(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_the_config_names_the_model(tiny: Path) -> None:
    edit(tiny / "config.json", _name_or_path="owner/Great Model")
    assert open_folder(tiny).name == "Great-Model"


def test_only_required_files_need_to_be_there(tiny: Path) -> None:
    whole = open_folder(tiny)
    needed = whole.files_for(whole.block_tensors(Span(0, 2)))
    for file in whole.files.keys() - needed:
        (tiny / file).unlink()
    assert "weight files missing" in refusal(tiny)
    assert "hash" in refusal(tiny, require=needed)
    part = open_folder(tiny, require=needed, hashes=whole.files)
    assert part.model_id == whole.model_id
    assert part.block_bytes(0) == whole.block_bytes(0)
    with pytest.raises(ModelError, match="not on this disk"):
        part.block_bytes(5)


def test_no_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / "file")


def test_no_config(tiny: Path) -> None:
    (tiny / "config.json").unlink()
    assert "config.json" in refusal(tiny)
    (tiny / "m.gguf").write_bytes(b"GGUF")
    assert str(tiny / "m.gguf") in refusal(tiny)


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_garbage_json(tiny: Path, name: str, garbage: bytes) -> None:
    (tiny / name).write_bytes(garbage)
    assert name in refusal(tiny)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size"])
@pytest.mark.parametrize("value", [None, 0, -1, "6", True, 1.5])
def test_bad_numbers_in_the_config(tiny: Path, key: str, value: object) -> None:
    edit(tiny / "config.json", **{key: value})
    assert key in refusal(tiny)


def test_no_weights_and_no_index(tiny: Path) -> None:
    (tiny / "model.safetensors.index.json").unlink()
    assert "index" in refusal(tiny)
    for file in tiny.glob("*.safetensors"):
        file.unlink()
    assert "no weights" in refusal(tiny)


def test_pickled_weights_are_refused(tiny: Path) -> None:
    for file in [*tiny.glob("*.safetensors"), tiny / "model.safetensors.index.json"]:
        file.unlink()
    (tiny / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "never unpickles" in refusal(tiny) and "save_pretrained" in refusal(tiny)


def test_the_index_names_a_missing_file(tiny: Path) -> None:
    next(tiny.glob("model-*.safetensors")).unlink()
    assert "missing" in refusal(tiny)


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "weights.bin", 7, "a/b"])
def test_the_index_names_no_file_of_the_folder(tiny: Path, file: object) -> None:
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = file
    edit(tiny / "model.safetensors.index.json", **index)
    assert "no safetensors file" in refusal(tiny)


def test_the_index_lacks_blocks_or_lies(tiny: Path) -> None:
    path = tiny / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    whole = dict(index["weight_map"])
    edit(path, weight_map={k: v for k, v in whole.items() if "layers.4." not in k})
    assert "lack 4;" in refusal(tiny)
    edit(path, weight_map={**whole, "model.extra.weight": whole["model.norm.weight"]})
    assert "model.extra.weight" in refusal(tiny)
    edit(path, weight_map={})
    assert "weight_map" in refusal(tiny)


def test_truncated_files(tiny: Path) -> None:
    file = next(tiny.glob("model-*.safetensors"))
    content = file.read_bytes()
    for size in (len(content) - 1, 40, 8, 3, 0):
        file.write_bytes(content[:size])
        assert "truncated" in refusal(tiny)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b'{"a":1}', b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    ],
)  # fmt: skip
def test_garbage_headers(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(ModelError, match="header"):
        read_header(path)


def test_a_huge_header_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="truncated or not safetensors"):
        read_header(path)


def test_unreadable_files(tiny: Path) -> None:
    file = next(tiny.glob("model-*.safetensors"))
    file.unlink()
    file.mkdir()
    assert f"cannot read {file}" in refusal(tiny)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_files_without_read_rights(tiny: Path) -> None:
    (tiny / "config.json").chmod(0)
    assert "Permission denied" in refusal(tiny)


def test_no_heavy_import() -> None:
    code = (
        "import sys, swarmd.compute.source, swarmd.compute.convert, swarmd.compute.model_folder;"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'tokenizers', 'gguf', 'numpy'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
