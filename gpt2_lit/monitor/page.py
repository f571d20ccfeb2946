"""tags -> TensorBoard's page: what each tag means, the charts of several, and the table of hyperparameters."""

import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from gpt2_lit.embedding.embedding import EmbeddingModule
from gpt2_lit.errors import printable, without_secrets

KINDS = ("token", "position", "input")
NORM_TAGS = {kind: f"embedding_norm/{kind}" for kind in KINDS}  # means
BAND_TAGS = {kind: f"norm_band/{kind}" for kind in KINDS}  # with _p05 and _p95
EXPECTED_TAGS = {kind: f"norm_expected/{kind}" for kind in KINDS}  # at initialisation
# Options of an optimizer that say how torch computes a step, not what the step is.
_TECHNICAL = {f"optimizer.{name}" for name in ("fused", "foreach", "capturable", "differentiable", "maximize")}

# Which plugin of TensorBoard shows a value of which kind, and the number of its class of data.
# Source: tensorboard/compat/proto/summary.proto.
PLUGINS = {"simple_value": ("scalars", 1), "image": ("images", 3), "histo": ("histograms", 2), "tensor": ("text", 2)}

_WHAT = {
    "token": "token vectors of a batch",
    "position": "position vectors of a batch",
    "input": "vectors that the backbone gets, token plus position",
}
_SPLITS = {"val": "validation", "test": "test"}
DESCRIPTIONS = {
    "train/loss": "Mean cross-entropy of the next token, in nats, over the targets that count. It begins at ln(V).",
    "train/learning_rate": "The learning rate of the step.",
    "train/tokens_seen": "Tokens trained on so far, of all processes.",
    "epoch": "Passes over the training text that are done.",
    **{NORM_TAGS[kind]: f"Mean L2 norm of the {what}." for kind, what in _WHAT.items()},
    **{
        f"{BAND_TAGS[kind]}_p{percentile}": f"{percentile.lstrip('0')}th percentile of the norms of the {what}. Custom "
        "Scalars has it as the edge of a band."
        for kind, what in _WHAT.items()
        for percentile in ("05", "95")
    },
    **{
        EXPECTED_TAGS[kind]: f"The norm expected at initialisation of the {what}: standard deviation * sqrt(D)."
        for kind, what in _WHAT.items()
    },
    **{f"table_norm/{kind}": f"Mean L2 norm of all rows of the {kind} table." for kind in ("token", "position")},
    "gradient_norm/total": "L2 norm of all gradients together, before clipping.",
    **{
        f"gradient_norm/{kind}_embedding": f"L2 norm of the gradient of the {kind} table, before clipping."
        for kind in ("token", "position")
    },
    "vocabulary/seen_fraction": "Share of the token ids that have been an input so far.",
    "throughput/tokens_per_second": "Targets a second, of all processes, without the time of validation.",
    "throughput/data_wait_fraction": "Share of the time spent waiting for data. Above 0.1 more data.num_workers help.",
    **{
        f"{tag}/loss": f"Mean cross-entropy of the next token on the {name} text, in nats."
        for tag, name in _SPLITS.items()
    },
    **{
        f"{tag}/perplexity": f"exp(mean loss) on the {name} text: the effective number of choices for each token."
        for tag, name in _SPLITS.items()
    },
    **{
        f"{tag}/bits_per_byte": f"Loss on the {name} text in bits for each byte: comparable between tokenizers."
        for tag, name in _SPLITS.items()
    },
    "embedding_picture/norm_by_count": "Norm of each token vector over how often the token is in the training text.",
    "embedding_picture/norm_by_position": "Norm of each position vector.",
    "embedding_picture/position_similarity": "Cosine similarity of all pairs of positions. Without attention all are "
    "alike. Where windows overlap, positions one stride apart meet the same tokens: diagonal lines.",
    "embedding_picture/norms_of_tokens": "Histogram of the norms of all rows of the token table.",
    "embedding_picture/norms_of_positions": "Histogram of the norms of all rows of the position table.",
    "training_windows": "Some training windows, each token above its target.",
    "sampled_text": "What the model writes after a prompt, by the same draws each time.",
    "highest_losses": "The windows of highest loss since the last time, with their sources.",
    "How to read this page": "What each tab shows, what is normal, and what is a warning sign.",
}


def expected_norms(embedding: EmbeddingModule) -> dict[str, float]:
    """The norms expected at initialisation: standard deviation * sqrt(D).

    Example:
        >>> {kind: round(norm, 2) for kind, norm in expected_norms(EmbeddingModule(10, 768, 4)).items()}
        {'token': 0.55, 'position': 0.28, 'input': 0.62}
    """
    std, root = embedding.init_std, math.sqrt(embedding.embed_dim)
    return {"token": std.token * root, "position": std.position * root, "input": math.hypot(*std) * root}


def describe(writer: Any) -> None:
    """Let the first value of each tag that a SummaryWriter writes bring the tag's description."""
    file_writer, described = writer.file_writer, set()
    if "add_summary" in vars(file_writer):
        return
    add_summary = file_writer.add_summary

    def add_described(summary: Any, *args: Any, **options: Any) -> None:
        for value in summary.value:
            if value.tag not in described:
                described.add(value.tag)
                if text := DESCRIPTIONS.get(value.tag.removesuffix("/text_summary")):
                    value.metadata.summary_description = text
                    # Without a plugin and a class TensorBoard does not read the description.
                    plugin, data_class = PLUGINS[value.WhichOneof("value")]
                    value.metadata.plugin_data.plugin_name = plugin
                    value.metadata.data_class = data_class
        add_summary(summary, *args, **options)

    vars(file_writer)["add_summary"] = add_described


def how_to_read(embedding: EmbeddingModule) -> str:
    """What each tab shows, in Markdown, with this model's numbers."""
    at_start = ", ".join(f"{kind} {norm:.2g}" for kind, norm in expected_norms(embedding).items())
    return f"""
| tab, and what it shows | normal | a warning sign |
| --- | --- | --- |
| **Time Series**: `train/loss`, `val/loss` | begin at {math.log(embedding.vocab_size):.2f}, the logarithm of \
{embedding.vocab_size:,} tokens, and fall | not a number, or rising: lower the learning rate. `val/loss` rising while \
`train/loss` falls: the text is learned by heart |
| `embedding_norm/...`: mean norms of a batch's vectors | begin as initialised ({at_start}), grow, and level off | a \
jump: look at `gradient_norm/total`. Growth without end: weight decay, or a lower learning rate |
| `gradient_norm/...` | less and less | single peaks: `trainer.gradient_clip_val` |
| `vocabulary/seen_fraction` | rises fast, then levels off; a small text has few of the tokens | |
| `throughput/data_wait_fraction` | near 0 | above 0.1: more `data.num_workers` |
| `embedding_picture/norm_by_count`: each token's norm | rises with the count | one level: nothing is learned yet |
| `embedding_picture/position_similarity` | neighbours are alike, others are not; all, without attention | with \
attention, all alike |
| **Custom Scalars**: means, bands, and the norms expected at initialisation | bands widen with training | a band of \
no width at 0 |
| **Text**: `training_windows`, each token above its target | the target is the next token | text you did not mean to \
train on |
| **HParams**: one line for each run, with its `val/loss` | | |
| **Projector**: the most frequent tokens | click one: its neighbours are used alike | |

The Projector's tab appears when this page is reloaded once: TensorBoard looks for its files after the first load.
With smoothing at 0, on the right or left, curves are what was measured. In the tabs Scalars, Images and Histograms
each chart has a description: click its (i). Custom Scalars shows all of a curve without "Ignore outliers".
""".strip()


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
    data = _data_options(getattr(trainer, "datamodule", None))
    options = {"data": data, "learning_rate": learning_rate, **model.hparams}
    return hparams({name: value for name, value in _flat(options) if name not in _TECHNICAL}, {"val/loss": 0.0})


def _data_options(data: Any) -> dict[str, Any]:
    """What tells runs apart, as far as a datamodule has it: TensorBoard shows the first five of all names unasked."""
    names = ("source", "stride", "batch_size", "seed")
    options = {name: getattr(data, name, None) for name in names}
    if options["source"] is not None:
        options["source"] = printable(without_secrets(str(options["source"])), 200)
    return options | {"tokenizer": getattr(getattr(data, "tokenizer", None), "name", None)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float]]:
    """Nested options by dotted names; a class and its arguments, as LightningCLI keeps them, by the option's name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        elif value is not None and not str(name).startswith("_"):
            name = f"{prefix}{name}".removesuffix(".class_path")
            yield name, value if isinstance(value, (int, float)) else str(value)
