"""What tables save of a model's memory reads, counted as arXiv 2402.13388 counts them."""

from dataclasses import dataclass

BATCHES = (1, 16, 256, 1024)
SCHEME = (
    "values read up to q, k and v of the first layer, after arXiv 2402.13388: a batch of n tokens "
    "reads n*d and the weights of q, k and v once without tables, n*2*(d+e) with them; e is the "
    "width of k"
)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Values that one batch reads from memory, and how many times fewer with tables."""

    batch: int  # tokens
    without_tables: int
    with_tables: int
    times: float


def first_layer_reads(d_model: int, q_width: int, k_width: int) -> tuple[Reads, ...]:
    """The reads at every batch of BATCHES.

    With tables a token reads its embedding, which the skip connection needs, q, k and v: the
    paper's 2*(d+e), where q is as wide as the model.

    Args:
        d_model: d.
        q_width: H*Dh.
        k_width: e = Hk*Dh, that of v too.
    """
    weights = d_model * (q_width + 2 * k_width)
    row = d_model + q_width + 2 * k_width
    return tuple(
        Reads(
            batch=n,
            without_tables=n * d_model + weights,
            with_tables=n * row,
            times=(n * d_model + weights) / (n * row),
        )
        for n in BATCHES
    )
