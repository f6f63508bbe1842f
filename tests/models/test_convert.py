"""Conversion: the same logits, one shard a block, and a target that is whole or absent."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.compute import convert
from swarmd.compute.convert import CLIENT_SHARD, convert_folder, convert_gguf
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.errors import ModelError, StateError, UnsupportedModel, UsageError


def logits(folder: Path, **options: object):  # type: ignore[no-untyped-def]
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), **options).eval()
    with torch.inference_mode():
        return model(torch.arange(1, 12)[None]).logits


def test_smollm2_has_one_shard_a_block(smollm: ModelFolder) -> None:
    assert (smollm.n_blocks, smollm.hidden_size, smollm.max_positions) == (30, 576, 8192)
    for block in range(30):
        assert smollm.files_for(smollm.block_tensors(Span(block, block + 1))) == {
            f"block-{block:05d}.safetensors"
        }
    assert smollm.client_tensors() == {
        "model.embed_tokens.weight": CLIENT_SHARD, "model.norm.weight": CLIENT_SHARD,
    }  # fmt: skip
    assert "quantization_config" not in smollm.config
    assert smollm.name == "SmolLM2-135M-Instruct.Q4_1"


def test_smollm2_reloads_with_identical_logits(smollm: ModelFolder, smollm_gguf: Path) -> None:
    import torch

    ours = logits(smollm.path)
    theirs = logits(smollm_gguf.parent, gguf_file=smollm_gguf.name, dtype=torch.float32)
    assert torch.equal(ours, theirs)


def test_smollm2_is_converted_once(smollm: ModelFolder, smollm_gguf: Path) -> None:
    again: list[str] = []
    folder = convert_gguf(smollm_gguf, smollm.path, progress=lambda s, d, t: again.append(s))
    assert folder == smollm and again == []
    with pytest.raises(UsageError, match="holds something else"):
        convert_gguf(smollm_gguf, smollm.path, "bfloat16")


def test_smollm2_shows_its_progress(
    smollm: ModelFolder, smollm_stages: list[tuple[str, int, int]]
) -> None:
    assert list(dict.fromkeys(stage for stage, _, _ in smollm_stages)) == [
        "read", "dequantize", "write", "hash",
    ]  # fmt: skip
    for stage in ("read", "dequantize", "write", "hash"):
        steps = [(done, total) for name, done, total in smollm_stages if name == stage]
        assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    assert not [p for p in smollm.path.parent.iterdir() if "partial" in p.name]


def test_a_folder_is_resharded_byte_for_byte(tiny: Path, tmp_path: Path) -> None:
    import torch

    (tiny / "tokenizer.json").write_text("{}")
    (tiny / "modeling_evil.py").write_text("boom")
    stages: list[tuple[str, int, int]] = []
    source = open_folder(tiny)
    out = convert_folder(tiny, tmp_path / "out", lambda *step: stages.append(step))
    assert set(out.files) == {*(f"block-{n:05d}.safetensors" for n in range(6)), CLIENT_SHARD}
    assert out.weight_map.keys() == source.weight_map.keys() and out.name == source.name
    assert out.block_bytes(3) == source.block_bytes(3)
    assert (out.path / "tokenizer.json").exists() and not (out.path / "modeling_evil.py").exists()
    assert torch.equal(logits(tiny), logits(out.path))
    assert {stage for stage, _, _ in stages} == {"write", "hash"}
    assert convert_folder(tiny, tmp_path / "out") == out


def test_the_shards_are_valid_for_the_safetensors_library(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    out = convert_folder(tiny, tmp_path / "out")
    before = {k: v for file in open_folder(tiny).files for k, v in load_file(tiny / file).items()}
    after = {k: v for file in out.files for k, v in load_file(out.path / file).items()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_conversions_have_the_same_fingerprint(tiny: Path, tmp_path: Path) -> None:
    one, two = (convert_folder(tiny, tmp_path / name) for name in "ab")
    assert one.model_id == two.model_id


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(tmp_path / "in"))
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    out = convert_folder(tmp_path / "in", tmp_path / "out")
    assert "lm_head.weight" not in out.weight_map
    assert logits(tmp_path / "in").equal(logits(out.path))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_an_interrupted_conversion_leaves_nothing(
    tiny: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "write":
            raise error("stop")

    target = tmp_path / "target"
    with pytest.raises((error, StateError)):
        convert_folder(tiny, target / "out", interrupt)
    assert not [path for path in target.iterdir() if not path.name.endswith(".lock")]
    assert convert_folder(tiny, target / "out").n_blocks == 6


def test_leftovers_of_a_killed_process_go(tiny: Path, tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial-dead"
    stale.mkdir()
    (stale / "x").write_text("x")
    convert_folder(tiny, tmp_path / "out")
    assert not stale.exists()


def test_a_damaged_conversion_is_made_again(tiny: Path, tmp_path: Path) -> None:
    out = convert_folder(tiny, tmp_path / "out")
    (out.path / CLIENT_SHARD).write_bytes(b"x")
    assert convert_folder(tiny, tmp_path / "out") == out


def test_a_target_that_holds_something_else_is_kept(tiny: Path, tmp_path: Path) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("x")
    with pytest.raises(UsageError, match="holds something else"):
        convert_folder(tiny, precious.parent)
    assert precious.exists()
    with pytest.raises(UsageError, match="source itself"):
        convert_folder(tiny, tiny)
    precious.unlink()
    assert convert_folder(tiny, precious.parent).n_blocks == 6


def test_a_target_that_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot write"):
        convert_folder(tiny, tmp_path / "file" / "out")


def work(src: str, out: str, made: str) -> None:
    real = convert._reshard

    def noted(source, folder, progress):  # type: ignore[no-untyped-def]
        with open(made, "a") as file:
            file.write("x")
        real(source, folder, progress)

    convert._reshard = noted
    assert convert_folder(src, out).n_blocks == 6


def test_two_processes_do_the_work_once(tiny: Path, tmp_path: Path) -> None:
    open_folder(tiny)  # so that both find the hashes
    context = multiprocessing.get_context("spawn")
    made = tmp_path / "made"
    arguments = (str(tiny), str(tmp_path / "out"), str(made))
    both = [context.Process(target=work, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert made.read_text() == "x"


def test_the_second_waits_and_says_so(tiny: Path, tmp_path: Path) -> None:
    writing, release = threading.Event(), threading.Event()
    stages: list[str] = []

    def slow(stage: str, done: int, total: int) -> None:
        if stage == "write":
            writing.set()
            assert release.wait(30)

    def note(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        release.set()

    first = threading.Thread(target=convert_folder, args=(tiny, tmp_path / "out", slow))
    first.start()
    assert writing.wait(30)
    second = convert_folder(tiny, tmp_path / "out", note)
    first.join(30)
    assert second.n_blocks == 6 and set(stages) == {"wait"}


def test_bad_input(tmp_path: Path, smollm_gguf: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(UsageError, match="dtype"):
        convert_gguf(smollm_gguf, tmp_path / "out", "int8")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 10)
    with pytest.raises(ModelError, match=r"x\.gguf"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_transformers_cannot_load(tmp_path: Path) -> None:
    from .test_gguf_tokenizer import sentencepiece_gguf

    path = sentencepiece_gguf(tmp_path / "x.gguf")
    content = path.read_bytes().replace(b"llama", b"nosuc")
    content = content.replace(b"ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0nosuc",
                              b"ggml.model\x08\0\0\0\x05\0\0\0\0\0\0\0llama")  # fmt: skip
    path.write_bytes(content)
    with pytest.raises((UnsupportedModel, ModelError)):
        convert_gguf(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gguf_of_another_dtype(tiny_gguf: Path, tmp_path: Path) -> None:
    out = convert_gguf(tiny_gguf, tmp_path / "out", "bfloat16")
    assert {info.dtype for info in out.tensors.values()} == {"BF16"}
    assert json.loads((out.path / "config.json").read_text())["dtype"] == "bfloat16"
    copy = shutil.copytree(out.path, tmp_path / "copy")
    assert open_folder(copy).model_id == out.model_id


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A llama of two blocks with random weights and a sentencepiece vocabulary."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "tiny.gguf"
    random = np.random.default_rng(0)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁"]
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_feed_forward_length(48)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3, *[6] * 256, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (len(words), 32), "output_norm.weight": (32,)}
    for block in range(2):
        shapes |= {
            f"blk.{block}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (32, 32),
                "attn_v": (32, 32), "attn_output": (32, 32), "ffn_gate": (48, 32),
                "ffn_up": (48, 32), "ffn_down": (32, 48),
            }.items()
        }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("left", [0.3, 0.999])
def test_a_truncated_gguf(tiny_gguf: Path, tmp_path: Path, left: float) -> None:
    content = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(content[: int(len(content) * left)])
    with pytest.raises(ModelError, match="damaged or truncated"):
        convert_gguf(tiny_gguf, tmp_path / "out")


def test_the_library_is_left_as_it_was(tiny_gguf: Path, tmp_path: Path) -> None:
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    before = (gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm)
    convert_gguf(tiny_gguf, tmp_path / "out")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm) == before
