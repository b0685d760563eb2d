"""Inputs that a model accepts, inferred from its layers and found by trial forwards."""
from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gradcheck_doctor.errors import BatchError
from gradcheck_doctor.observe.untouched import untouched
from gradcheck_doctor.targets.losses import call
from gradcheck_doctor.targets.memory import shapes

SIDES = (32, 28, 64, 224, 8, 16, 96, 128, 256, 299)
LENGTHS = (16, 8, 32, 64, 10, 128)
BATCH = 32
SMALL_BATCH = 4
HEAVY = 5_000_000       # parameters above which a small batch is used


def infer(model: nn.Module, seed: int = 0) -> Any:
    """A made-up batch that the model's forward accepts.

    Raises:
        BatchError: none was found; the message names what was tried and the exact option to give.
    """
    if getattr(type(model).forward, "__qualname__", "") in ("_forward_unimplemented", "LightningModule.forward"):
        takes = "; its training_step takes a batch: give the like of it" if hasattr(model, "training_step") else ""
        raise BatchError(f"{type(model).__name__} has no forward that inputs could be tried on{takes}\nTry: --batch EXPR, for example --batch 'next(iter(loader))'")
    given = _hugging_face(model, seed)
    if given is not None:
        return given
    names = _arguments(model)
    batch = SMALL_BATCH if sum(p.numel() for p in model.parameters()) > HEAVY else BATCH
    errors: list[str] = []
    with untouched(model), torch.no_grad():
        for candidate in itertools.islice(_candidates(model, names, batch, seed), 120):
            try:
                call(model, candidate)
            except Exception as error:
                errors.append(f"{shapes(candidate)}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            return candidate
    raise BatchError(_refusal(model, names, errors))


def _refusal(model: nn.Module, names: list[str], errors: list[str]) -> str:
    tried = "\n".join(f"  tried {e[:150]}" for e in errors[:3]) or "  nothing could be tried: no layer tells a shape"
    reasons = {e.partition(": ")[2] for e in errors}
    if len(errors) > 3 and len(reasons) == 1:
        tried = f"  all {len(errors)} that were tried raised {reasons.pop()[:150]}"
    example = " ".join(f"--input '{n}=float32[32,10]'" for n in names[:3]) if len(names) > 1 else "--input 'float32[32,10]'"
    return (f"no inputs could be inferred for {type(model).__name__}.forward({', '.join(names)}).\n{tried}\n"
            f"Give them: {example} (your shapes and dtypes), or --batch EXPR, or define example_inputs in the file.")


def _arguments(model: nn.Module) -> list[str]:
    """Names of the arguments that forward needs."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ["input"]
    required = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return required or ["input"]


def _candidates(model: nn.Module, names: list[str], batch: int, seed: int) -> Iterator[Any]:
    """Batches to try, the likeliest first."""
    generator = torch.Generator().manual_seed(seed)
    transformer = next((m for m in model.modules() if isinstance(m, nn.Transformer)), None)
    if transformer is not None and len(names) == 2:
        yield from _sequence_pairs(model, transformer, batch, generator)
    first = [list(_for_layer(layer, batch, generator)) for layer in _first_layers(model)]
    if len(names) == 1:
        for options in first:
            yield from options
        return
    for options in first[:2]:
        for option in options:
            yield (option, *(option.clone() for _ in names[1:]))
    for combination in itertools.product(*(o[:4] for o in (first * len(names))[: len(names)])):
        yield tuple(combination)
    for options in first[:2]:
        for option in options[:4]:
            yield (option, *(torch.rand(option.shape[0], generator=generator) for _ in names[1:]))


def _sequence_pairs(model: nn.Module, transformer: nn.Transformer, batch: int, generator: torch.Generator) -> Iterator[Any]:
    size, first = transformer.d_model, transformer.batch_first
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    for length in LENGTHS[:3]:
        shape = (batch, length) if first else (length, batch)
        if embeddings:
            limit = min(e.num_embeddings for e in embeddings)
            yield tuple(torch.randint(0, limit, shape, generator=generator) for _ in range(2))
        yield tuple(torch.randn(*shape, size, generator=generator) for _ in range(2))


def _first_layers(model: nn.Module) -> list[nn.Module]:
    """Layers with a known input shape, in order of registration."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Embedding, nn.EmbeddingBag,
             nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.modules.batchnorm._BatchNorm,
             nn.LayerNorm, nn.Bilinear)
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, kinds)]
    return layers[:6] + [m for m in layers[6:] if isinstance(m, (nn.Embedding, nn.Conv2d))][:2]


def _for_layer(layer: nn.Module, batch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Inputs that `layer` itself would accept."""
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        for length in LENGTHS:
            yield torch.randint(0, layer.num_embeddings, (batch, length), generator=generator)
        yield torch.randint(0, layer.num_embeddings, (batch,), generator=generator)
    elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
        channels = layer.num_features if isinstance(layer, nn.BatchNorm2d) else layer.in_channels
        yield from (normal(max(2, batch if side <= 64 else min(batch, 4)), channels, side, side) for side in SIDES)
        yield from (normal(batch, 1, channels, side) for side in SIDES[:2])
    elif isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        yield from (normal(batch, layer.in_channels, length) for length in (64, 32, 128, 16, 256, 1024))
    elif isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        yield from (normal(min(batch, 4), layer.in_channels, side, side, side) for side in (16, 8, 32, 64))
    elif isinstance(layer, nn.RNNBase):
        yield from (normal(batch, length, layer.input_size) if layer.batch_first else normal(length, batch, layer.input_size) for length in LENGTHS)
    elif isinstance(layer, nn.RNNCellBase):
        yield normal(batch, layer.input_size)
        yield from (normal(batch, length, layer.input_size) for length in LENGTHS)
    else:
        yield from _features(layer, batch, normal)


def _features(layer: Any, batch: int, normal: Any) -> Iterator[torch.Tensor]:
    """Inputs whose last axis is the feature axis."""
    size = next((n for name in ("in_features", "in1_features", "embed_dim", "num_features") if (n := getattr(layer, name, None)) is not None), None)
    if size is None and isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        size = layer.self_attn.embed_dim
    if size is None and isinstance(layer, nn.LayerNorm):
        size = layer.normalized_shape[-1]
    if size is None:
        return
    sequence = not isinstance(layer, (nn.Linear, nn.Bilinear))
    flat = [normal(batch, size)]
    long = [normal(batch, length, size) for length in LENGTHS[:3]]
    yield from long + flat if sequence else flat + long
    side = int(round(size**0.5))
    if side * side == size:
        yield normal(batch, 1, side, side)
        yield normal(batch, side, side)
    side = int(round((size / 3) ** 0.5))
    if 3 * side * side == size:
        yield normal(batch, 3, side, side)


def _hugging_face(model: nn.Module, seed: int) -> dict[str, Any] | None:
    """Inputs of a transformers model, from its config; with labels where the forward takes them."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "main_input_name") or not hasattr(config, "to_dict"):
        return None
    generator = torch.Generator().manual_seed(seed)
    names = set(inspect.signature(model.forward).parameters)
    main = str(model.main_input_name)
    batch, length = 4, min(16, max(getattr(config, "max_position_embeddings", None) or 16, 0) or 16)     # -1: no limit
    inputs: dict[str, Any] = {}
    if main == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        inputs[main] = torch.randn(batch, getattr(config, "num_channels", 3), height, width, generator=generator)
    elif main == "input_features":
        frames = 2 * getattr(config, "max_source_positions", 1500)
        inputs[main] = torch.randn(2, getattr(config, "num_mel_bins", 80), frames, generator=generator)
    elif main == "input_values":
        inputs[main] = torch.randn(2, 4000, generator=generator)
    else:
        text, vision = (getattr(config, part, config) for part in ("text_config", "vision_config"))
        if not isinstance(getattr(text, "vocab_size", None), int):
            return None
        inputs[main] = torch.randint(3, text.vocab_size, (batch, length), generator=generator)
        if vision is not config and "pixel_values" in names:
            inputs["pixel_values"] = torch.randn(batch, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size, generator=generator)
    rows = inputs[main].shape[0]
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.randint(3, config.vocab_size, (rows, length), generator=generator)
    if "labels" in names and "ForMaskedImage" not in type(model).__name__:
        labels = _labels(model, config, rows, length, generator)
        if labels is not None and _accepts(model, {**inputs, "labels": labels}):
            return {**inputs, "labels": labels}
    return inputs if _accepts(model, inputs) else None


def _labels(model: nn.Module, config: Any, rows: int, length: int, generator: torch.Generator) -> torch.Tensor | None:
    kind = type(model).__name__
    if any(k in kind for k in ("CausalLM", "LMHead", "ConditionalGeneration", "MaskedLM")):
        return torch.randint(3, config.vocab_size, (rows, length), generator=generator)
    if "TokenClassification" in kind:
        return torch.randint(0, config.num_labels, (rows, length), generator=generator)
    if "Classification" in kind:
        return torch.randint(0, config.num_labels, (rows,), generator=generator)
    return None


def _accepts(model: nn.Module, inputs: dict[str, Any]) -> bool:
    with untouched(model), torch.no_grad():
        try:
            call(model, inputs)
        except Exception:
            return False
    return True
