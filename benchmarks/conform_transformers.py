"""A dozen architectures of the package transformers under the conformance probe.

``PYTHONPATH=src ENV/bin/python -m benchmarks.conform_transformers`` in an environment of peers/transformers.txt writes
results/conform-transformers.json and docs/conformance.md. The models are small, with random weights plus noise.
"""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Mapping

import torch

from transduce.testing.adapters import adapt
from transduce.testing.conform import PROMISES, TOLERANCE, Finding, probe

ROOT = Path(__file__).resolve().parent.parent
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "llama": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gpt_neox": {},
    "mamba": {"state_size": 8, "use_mambapy": False},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3, "num_key_value_heads": 1},
    "xlstm": {"hidden_size": 128, "num_blocks": 2, "num_heads": 4, "chunk_size": 8},
    "qwen3_next": {
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8,
              "attn_layer_indices": [1]},
    "jamba": {"num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8,
              "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}  # fmt: skip

def build(name: str) -> torch.nn.Module:
    """A small random model of an architecture with noise on all weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SMALL, **ARCHITECTURES[name]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def findings_of(name: str) -> list[Finding]:
    try:
        return probe(adapt(build(name)))
    except Exception as problem:  # no model, no verdict: say why in its column
        said = f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:160]
        return [Finding(promise, None, said) for promise in PROMISES]


def page(found: Mapping[str, list[Finding]], version: str) -> str:
    """The verdicts as Markdown: a row for each architecture, a column for each promise."""
    marks = {True: "kept", False: "**broken**", None: "-"}
    numbers = {promise: i for i, promise in enumerate(PROMISES, 1)}
    lines = [
        "# Conformance of other models",
        "",
        "`transduce conform module:name` tries a causal model of any library: does decoding with its state give what the whole",
        f"sequence gives? Here are small random models of transformers {version} on the CPU in float32, each with noise of 0.1 on",
        "all weights, called as `generate` calls them. Made by `python -m benchmarks.conform_transformers`; the errors are in",
        f"`results/conform-transformers.json`. A promise is kept up to {TOLERANCE:g} of the spread of the logits.",
        "",
        *(f"{i}. {promise}" for promise, i in numbers.items()),
        "",
        "| architecture | " + " | ".join(str(i) for i in numbers.values()) + " |",
        "|---|" + "---|" * len(numbers),
    ]
    for name, findings in found.items():
        lines.append(f"| `{name}` | " + " | ".join(marks[f.kept] for f in findings) + " |")
    lines += ["", "What is behind each broken promise:", ""]
    for name, findings in found.items():
        for f in findings:
            if f.kept is False:
                lines.append(f"- `{name}`, {numbers[f.promise]}: {f.detail}.")
        if findings[0].kept is None:
            lines.append(f"- `{name}` was not tried: {findings[0].detail}.")
    lines += [
        "",
        '"An old state stays usable" is broken by every cache that is written in place: whoever tries a continuation and takes it',
        "back has to copy the cache first. In this library it is a law.",
        "",
        "What is known of the others: `rwkv` reads no mask, and its single step adds (B,D) to (B,1,D), so that rows of a batch",
        "are mixed; `mamba`, `falcon_mamba` and `jamba` continue a state by single steps only, a longer chunk begins its",
        "scan anew; `recurrent_gemma` keeps its recurrent state inside its modules, where no beam can reorder it, and gives",
        "padding on the left to its recurrence.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.filterwarnings("ignore")
    version = importlib.metadata.version("transformers")
    found: dict[str, list[Finding]] = {}
    for name in ARCHITECTURES:
        found[name] = findings_of(name)
        print(name, *("-" if f.kept is None else "ok" if f.kept else "BROKEN" for f in found[name]), flush=True)
    record = {
        "command": "python -m benchmarks.conform_transformers",
        "transformers": version,
        "torch": torch.__version__,
        "findings": {name: [asdict(f) for f in findings] for name, findings in found.items()},
    }
    (ROOT / "results" / "conform-transformers.json").write_text(json.dumps(record, indent=1) + "\n")
    (ROOT / "docs" / "conformance.md").write_text(page(found, version))


if __name__ == "__main__":
    main()
