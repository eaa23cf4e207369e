"""A queue of embeddings of earlier batches (MoCo, arXiv 1911.05722, Sec. 3.2; also used by SEED)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa import distributed
from poa.errors import UserError


class EmbeddingQueue(nn.Module):
    """The newest embeddings, the same on all processes; it starts as random unit vectors."""

    rows: Tensor
    place: Tensor
    """Of the row that is replaced next."""

    def __init__(self, length: int, width: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(length, width, generator=generator, device="cpu")
        self.register_buffer("rows", F.normalize(rows, dim=1).to(torch.get_default_device()))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Float[Tensor, "batch width"]) -> None:
        """Replace the oldest embeddings by those of all processes, on the unit sphere; every process brings as many.

        Raises:
            UserError: The queue is no multiple of what is put in at once.
        """
        gathered = distributed.gather_rows(rows.detach().to(self.rows.dtype))
        length = len(self.rows)
        if length % len(gathered):
            enough = -(-length // len(gathered)) * len(gathered)
            raise UserError(
                f"A queue of {length} embeddings cannot be filled by {len(gathered)} at a time. "
                f"Set the queue to a multiple of {len(gathered)}, such as {enough}."
            )
        start = int(self.place)
        self.rows[start : start + len(gathered)] = gathered
        self.place.fill_((start + len(gathered)) % length)
