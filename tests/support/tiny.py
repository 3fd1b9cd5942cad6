"""The tiny random model: its files, made once per session."""

from pathlib import Path

from zmqrt.worker.model_cache import build_once
from zmqrt.worker.tiny_model import TinyConfig, write_tiny_model


def silent(_phase: object, _percent: float) -> None:
    """Report to nobody."""


def tiny_model(folder: Path, variant: str = "") -> Path:
    """Write a variant below `folder` unless it is there already."""
    config = TinyConfig.parse(variant)
    return build_once(
        folder / f"tiny{config.slug}", lambda place: write_tiny_model(place, config, lambda _percent: None)
    )
