"""Check the PEFT converter against PEFT itself: the same deltas, matrix by matrix. Optional; needs torch.

    python3 -m venv /tmp/peft && /tmp/peft/bin/pip install torch peft transformers gguf numpy safetensors
    PYTHONPATH=. /tmp/peft/bin/python scripts/compare_peft.py BASE.gguf examples/adapters/*

The base must be of the llama architecture. Its weights are dequantised into a Hugging Face model; each adapter is
loaded into that by PEFT, and every `get_delta_weight` is compared with scale * B @ A of the converted file. Then
adapters of random weights, made and saved by PEFT, do the same for what the given ones leave out: rsLoRA, rank and
alpha patterns, all matrices, half precision. With --answers each given adapter also answers two questions, greedily,
through PEFT.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import peft
import torch
import transformers

from modelctl import adapters
from modelctl.gguf_check import Header, check_base, read_header

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "all matrices, r=3": {"r": 3, "lora_alpha": 5, "target_modules": ALL},
    "rslora": {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": ["q_proj", "k_proj"]},
    "rank_pattern": {"r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 7}, "target_modules": ["k_proj", "o_proj"]},
    "alpha_pattern": {
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {r"layers\.(0|1)\.self_attn.q_proj": 3},
        "target_modules": ["q_proj"],
    },
    "rslora, both patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"model.layers.1.self_attn.v_proj": 2, "q_proj": 9},
        "alpha_pattern": {"^model.layers.2.self_attn.v_proj": 40, "v_proj": 1},
        "target_modules": ["q_proj", "v_proj"],
    },
    "bfloat16": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "dtype": torch.bfloat16},
    "float16": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "dtype": torch.float16},
}
QUESTIONS = ("What is the capital of Spain?", "Tell me about cats.")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def llama_order(n_rows: int, n_heads: int) -> list[int]:
    """Row i of the GGUF is row order[i] of Hugging Face's q or k: llama.cpp rotates neighbours, HF the two halves."""
    head = n_rows // n_heads
    pairs = [offset for i in range(head // 2) for offset in (i, i + head // 2)]
    return [start + offset for start in range(0, n_rows, head) for offset in pairs]


def heads(header: Header, tensor: str) -> int | None:
    info = check_base(header)
    return {"attn_q": info.head_count, "attn_k": info.head_count_kv}.get(tensor.split(".")[-2])


def load_base(path: Path) -> Any:
    """The base as a Hugging Face model in float32."""
    header = read_header(path)
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        n_heads = heads(header, tensor.name) if tensor.name.count(".") > 1 else None
        if n_heads:
            array = array[np.argsort(llama_order(array.shape[0], n_heads))]
        state[hugging_face_name(tensor.name)] = torch.from_numpy(np.array(array))
    model = transformers.LlamaForCausalLM(config(header, state))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"]), missing
    model.tie_weights()
    return model.eval()


def hugging_face_name(name: str) -> str:
    whole = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    if name in whole:
        return f"model.{whole[name]}"
    if name == "output.weight":
        return "lm_head.weight"
    _, block, kind, _ = name.split(".")
    return f"model.layers.{block}.{MODULES[kind]}.weight"


def config(header: Header, state: dict[str, Any]) -> Any:
    info, get = check_base(header), header.metadata.get
    return transformers.LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=info.embedding_length,
        intermediate_size=get("llama.feed_forward_length"),
        num_hidden_layers=info.block_count,
        num_attention_heads=info.head_count,
        num_key_value_heads=info.head_count_kv,
        rms_norm_eps=get("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("llama.rope.freq_base", 10000.0)},
        max_position_embeddings=info.context_length,
        tie_word_embeddings="lm_head.weight" not in state,
    )


def compare(model: Any, base: Header, folder: Path) -> None:
    """Print the largest difference over all matrices, as a share of that matrix's largest value."""
    with tempfile.TemporaryDirectory() as scratch:
        file, info, _ = adapters.prepare(folder, base, Path(scratch))
        ours = dict(gguf_deltas(file))
    worst = 0.0
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            target = gguf_name(name)
            theirs = module.get_delta_weight("default").float().detach().numpy()
            n_heads = heads(base, target)
            if n_heads:
                theirs = theirs[llama_order(theirs.shape[0], n_heads)]
            worst = max(worst, float(np.abs(ours.pop(target) - theirs).max() / np.abs(theirs).max()))
    assert not ours, f"not in PEFT: {list(ours)}"
    print(f"  {info.covered}, rank {info.rank}: largest difference {worst:.1e}", "" if worst < 1e-5 else "  <-- WRONG")


def gguf_deltas(file: Path) -> Any:
    reader = gguf.GGUFReader(file)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    for name, b in tensors.items():
        if name.endswith(".lora_b"):
            yield name[: -len(".lora_b")], alpha / b.shape[1] * b @ tensors[name[:-1] + "a"]


def gguf_name(module: str) -> str:
    _, _, block, kind = module.removeprefix("base_model.model.").split(".", 3)
    return f"blk.{block}.{next(ours for ours, theirs in MODULES.items() if theirs == kind)}.weight"


def make_variant(model: Any, folder: Path, options: dict[str, Any]) -> None:
    """A random adapter, saved by PEFT. Half precision is that of the file: PEFT computes in it, too."""
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter) * 0.05).to(dtype)
    made.save_pretrained(folder)
    made.unload()


def answer(model: Any, base: Path, question: str) -> str:
    """Greedy, with the vocabulary of the GGUF; ChatML, as SmolLM2's own template renders it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name)
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    output = model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=2, pad_token_id=2)
    return str(tokenizer.decode(output[0][prompt.shape[1] :], skip_special_tokens=True)).strip()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("base", type=Path)
    arguments.add_argument("adapter", type=Path, nargs="*")
    arguments.add_argument("--answers", action="store_true")
    options = arguments.parse_args()
    base = read_header(options.base)
    model = load_base(options.base)
    for folder in options.adapter:
        if not adapters.is_peft(folder):
            continue
        print(folder)
        adapted = peft.PeftModel.from_pretrained(model, folder)
        compare(adapted, base, folder)
        if options.answers:
            for question in QUESTIONS:
                print(f"  {question} {answer(adapted, options.base, question)}")
        model = adapted.unload()
    for name, variant in VARIANTS.items():
        print(name)
        with tempfile.TemporaryDirectory() as scratch:
            make_variant(model, Path(scratch), variant)
            adapted = peft.PeftModel.from_pretrained(model, scratch)
            compare(adapted, base, Path(scratch))
            model = adapted.unload()


if __name__ == "__main__":
    main()
