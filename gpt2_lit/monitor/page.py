"""tags -> TensorBoard's page: what each tag means, the charts of several, and the table of hyperparameters."""

import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from gpt2_lit.embedding.embedding import EmbeddingModule

KINDS = ("token", "position", "input")
NORM_TAGS = {kind: f"embedding_norm/{kind}" for kind in KINDS}  # means
BAND_TAGS = {kind: f"norm_band/{kind}" for kind in KINDS}  # with _p05 and _p95
EXPECTED_TAGS = {kind: f"norm_expected/{kind}" for kind in KINDS}  # at initialisation


def expected_norms(embedding: EmbeddingModule) -> dict[str, float]:
    """The norms expected at initialisation: standard deviation * sqrt(D).

    Example:
        >>> {kind: round(norm, 2) for kind, norm in expected_norms(EmbeddingModule(10, 768, 4)).items()}
        {'token': 0.55, 'position': 0.28, 'input': 0.62}
    """
    std, root = embedding.init_std, math.sqrt(embedding.embed_dim)
    return {"token": std.token * root, "position": std.position * root, "input": math.hypot(*std) * root}


def charts() -> Any:
    """A summary of what the Custom Scalars tab shows: the same for every run, so that runs share their charts."""
    from torch.utils.tensorboard.summary import custom_scalars

    # A type checker does not know the classes that protobuf makes. torch knows one series for each band.
    layout: Any = import_module("tensorboard.plugins.custom_scalar.layout_pb2")

    def band(kind: str) -> Any:
        # TensorBoard leaves the highest 5 % of all values out of view, and ends an area where its `upper` leaves it.
        # With the lower edge there, a band ends where its mean does.
        series = layout.MarginChartContent.Series
        low, high, expected = f"{BAND_TAGS[kind]}_p05", f"{BAND_TAGS[kind]}_p95", EXPECTED_TAGS[kind]
        return layout.MarginChartContent(
            series=[
                series(value=NORM_TAGS[kind], lower=high, upper=low),
                series(value=expected, lower=expected, upper=expected),
            ]
        )

    tags = [f"^{tag}$" for tag in (*NORM_TAGS.values(), *EXPECTED_TAGS.values())]
    means = layout.Chart(title="mean norms, and those expected", multiline=layout.MultilineChartContent(tag=tags))
    bands = [layout.Chart(title=f"{kind} norm: mean, 5th to 95th percentile", margin=band(kind)) for kind in KINDS]
    title = "norms of the vectors of a batch, and the norms expected at initialisation"
    summary = custom_scalars({})
    page = layout.Layout(category=[layout.Category(title=title, chart=[means, *bands])])
    summary.value[0].tensor.string_val[0] = page.SerializeToString()
    return summary


def hyperparameters(trainer: Trainer, model: LightningModule) -> tuple[Any, Any, Any]:
    """Summaries for the HParams tab: the names of all hyperparameters, this run's values, and that it has ended.

    The value it is judged by is read from the curve ``val/loss``. The logger's own way would write a point into it.
    """
    from torch.utils.tensorboard.summary import hparams

    learning_rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
    return hparams(dict(_flat({**model.hparams, "learning_rate": learning_rate})), {"val/loss": 0.0})


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Nested options by dotted names; a class and its arguments, as LightningCLI keeps them, by the option's name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif value is not None and not str(name).startswith("_"):
            name = f"{prefix}{name}".removesuffix(".class_path")
            yield name, value if isinstance(value, (int, float)) else str(value)
