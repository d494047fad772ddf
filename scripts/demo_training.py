"""Training of the demo model: a small loop around the product's own decoder, and the folder it is saved to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

from demo_settings import DemoSettings
from edge_awq.bench.hf_folder import hf_config, train_tokenizer, write_text_files
from edge_awq.bench.random_weights import RandomWeights, stored_name
from edge_awq.bench.stdlib_text import Corpus, read_corpus
from edge_awq.model.config import DecoderConfig, parse_config
from edge_awq.model.decoder import Weights, norm, run_block
from edge_awq.model.family import Family, find_family
from edge_awq.progress import Progress

SAVED_TYPE = torch.float16  # a trained weight keeps 11 bits of precision, bfloat16 would keep 8
HELD_OUT_WINDOWS = 32
TOKENIZER_DOCUMENTS = 2000  # a sample of the text; more changes hardly a merge


@dataclass(frozen=True)
class Model:
    """A whole decoder in memory, every weight trainable.

    Attributes:
        outer: ``embed.weight`` [vocab, hidden] (the head too) and ``final_norm.weight`` [hidden].
        blocks: weights of each block by canonical name.
    """

    family: Family
    config: DecoderConfig
    outer: Weights
    blocks: tuple[Weights, ...]

    def parameters(self) -> list[torch.Tensor]:
        """Every weight once."""
        return [weight for table in (self.outer, *self.blocks) for weight in table.values()]

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy (nats) of ids[:, 1:] given what precedes; ids [batch, tokens + 1]."""
        x = F.embedding(ids[:, :-1], self.outer["embed.weight"])
        for index, weights in enumerate(self.blocks):
            x = run_block(self.config, index, weights, x)
        logits = F.linear(norm(self.config, "final_norm", x, self.outer), self.outer["embed.weight"])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def stored(self) -> dict[str, torch.Tensor]:
        """The weights as the checkpoint names and types them."""
        tensors = {stored_name(self.family, name): weight for name, weight in self.outer.items()}
        for index, weights in enumerate(self.blocks):
            tensors |= {stored_name(self.family, name, index): weight for name, weight in weights.items()}
        return {name: weight.detach().to(SAVED_TYPE) for name, weight in tensors.items()}


@dataclass(frozen=True)
class TrainingResult:
    """How good the model became, on files it never saw.

    Attributes:
        loss: cross entropy, nats per token.
        bits_per_byte: the same per UTF-8 byte of text, which does not depend on the tokenizer.
    """

    parameters: int
    training_tokens: int
    loss: float
    bits_per_byte: float
    held_out_files: tuple[str, ...]


def train_and_save(folder: Path, settings: DemoSettings, progress: Progress) -> TrainingResult:
    """The whole way from Python's library to a Hugging Face folder."""
    corpus = read_corpus(settings.text_size)
    tokenizer = train_tokenizer(corpus.training[:TOKENIZER_DOCUMENTS], settings.vocab_size)
    raw_config = demo_config(settings)
    model = initial_model(raw_config, settings.seed)
    train(model, encode(tokenizer, corpus.training), settings, progress)
    write_text_files(folder, raw_config, tokenizer)
    save_file(model.stored(), folder / "model.safetensors", metadata={"format": "pt"})
    return judge(model, tokenizer, corpus, settings)


def demo_config(settings: DemoSettings) -> dict[str, Any]:
    """config.json of the demo model."""
    return hf_config({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "vocab_size": settings.vocab_size,
        "max_position_embeddings": settings.context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }, str(SAVED_TYPE).removeprefix("torch."))


def initial_model(raw_config: dict[str, Any], seed: int) -> Model:
    """A model with random weights and all gains 1."""
    family = find_family(raw_config)
    config = parse_config(raw_config, family)
    random = RandomWeights(family, config, torch.Generator().manual_seed(seed))
    # The embedding is the head too: at half the gain the first predictions are near uniform.
    outer = {"embed.weight": random.matrix("embed", gain=0.5), "final_norm.weight": random.gains()}
    model = Model(family, config, outer, tuple(random.block() for _ in range(config.num_layers)))
    for weight in model.parameters():
        weight.requires_grad_()
    return model


def train(model: Model, stream: torch.Tensor, settings: DemoSettings, progress: Progress) -> None:
    """AdamW with a short warm-up and a cosine decay; the weights are changed in place. stream [tokens] int64."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)
    total = sum(phase.steps for phase in settings.phases)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, total))
    with progress.track("training, steps", total) as advance:
        for windows in batches(stream, settings):
            model.loss(windows).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            advance(1)


def batches(stream: torch.Tensor, settings: DemoSettings) -> Iterator[torch.Tensor]:
    """Random windows of the stream, [sequences, tokens + 1], each opened by BOS as every prompt will be."""
    generator = torch.Generator().manual_seed(settings.seed)
    for phase in settings.phases:
        offsets = torch.arange(phase.tokens + 1)
        for _ in range(phase.steps):
            starts = torch.randint(0, len(stream) - phase.tokens, (phase.sequences, 1), generator=generator)
            yield opened(stream[starts + offsets], stream)


def opened(windows: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """The windows [count, tokens], each with BOS, the stream's first token, in place of its own first."""
    windows[:, 0] = stream[0]
    return windows


def learning_rate_share(step: int, total: int) -> float:
    """Linear warm-up over the first 3 %, then a half cosine down to 5 %."""
    warm_up = max(1, total * 3 // 100)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


@torch.no_grad()
def judge(model: Model, tokenizer: Tokenizer, corpus: Corpus, settings: DemoSettings) -> TrainingResult:
    """Cross entropy over windows of a whole context, spread evenly over the held-out documents."""
    stream = encode(tokenizer, corpus.held_out)
    length = settings.context + 1
    windows = stream[: len(stream) // length * length].view(-1, length)
    windows = windows[:: max(1, len(windows) // HELD_OUT_WINDOWS)].clone()
    loss = float(model.loss(opened(windows, stream)))
    bytes_per_token = sum(len(document.encode()) for document in corpus.held_out) / len(stream)
    return TrainingResult(
        parameters=sum(weight.numel() for weight in model.parameters()),
        training_tokens=sum(phase.steps * phase.sequences * phase.tokens for phase in settings.phases),
        loss=loss,
        bits_per_byte=loss / math.log(2) / bytes_per_token,
        held_out_files=corpus.held_out_files,
    )


def encode(tokenizer: Tokenizer, documents: Iterable[str]) -> torch.Tensor:
    """All documents in a row, [tokens] int64; BOS and EOS stand in their text."""
    encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    return torch.from_numpy(np.concatenate([np.asarray(one.ids, dtype=np.int64) for one in encodings]))
