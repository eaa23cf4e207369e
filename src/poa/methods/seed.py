"""SEED: a student learns how similar a frozen teacher finds images (arXiv 2101.04731)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Family
from poa.losses.contrastive import similarity_distillation
from poa.methods.base import Branch, Method
from poa.methods.layers import EmbeddingQueue


class Student(Branch):
    """A backbone of the intact size, and an MLP of two layers into the teacher's space (SEED, Sec. 3.1)."""

    def __init__(self, family: Family, *, width: int, drop_path: float) -> None:
        super().__init__()
        self.backbone = family.build(family.space.intact, drop_path=drop_path)
        own = self.backbone.num_features
        self.heads = nn.Sequential(nn.Linear(own, own), nn.ReLU(), nn.Linear(own, width))

    def forward(self, images: Float[Tensor, "batch channels height side"]) -> Float[Tensor, "batch width"]:
        """Embeddings on the unit sphere, in float32."""
        features = self.backbone(images, None).cls
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.heads(features.float()), dim=1)


class SEED(Method):
    """A frozen teacher, a student of one size, and a queue of teacher embeddings for each kind of crop.

    Both networks see the same crops. Each crop is compared with its own teacher embedding and with the queue as it was
    before this batch; the first crop of each image is put into the queue then. Local crops have a queue of their own.

    Args:
        family: Backbones; its intact network is the student.
        teacher: Images to ``Features``, of which the class features are the embedding; normalised images are as the
            run has them.
        width: Of the teacher's class features.
        distillation: How similarities are distilled.
        drop_path: Rate of stochastic depth in the student.
        checkpointing: Recompute the student's blocks and its head in the backward pass instead of storing them.
        compile_blocks: Compile the backbone's blocks.
    """

    def __init__(
        self,
        family: Family,
        teacher: nn.Module,
        *,
        width: int,
        distillation: DistillSettings,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.distillation = distillation
        student = Student(family, width=width, drop_path=drop_path)
        self.student: Student = student.prepare(checkpointing=checkpointing, compile_blocks=compile_blocks)
        self.student.backbone.mask_token.requires_grad_(False)  # nothing is hidden
        self.teacher = teacher.requires_grad_(False).eval()
        self.global_queue = EmbeddingQueue(distillation.queue, width, seed=0)
        self.local_queue = EmbeddingQueue(distillation.queue, width, seed=1)

    def train(self, mode: bool = True) -> "SEED":
        """The student switches; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:  # noqa: ARG002
        """Global crops weigh 1."""
        return {"student/global": 1.0} | ({"student/local": self.distillation.local_weight} if num_locals else {})

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:  # noqa: ARG002
        """Unweighted losses by name; masks and the scheduled temperature play no part."""
        assert not sizes, "there is one size"
        num_images = len(views.globals) // 2
        losses = {"student/global": self._distil(views.globals, self.global_queue, num_images)}
        if len(views.locals):
            losses["student/local"] = self._distil(views.locals, self.local_queue, num_images)
        return losses

    def _distil(
        self, crops: Float[Tensor, "crops channels height side"], queue: EmbeddingQueue, num_images: int
    ) -> Float[Tensor, ""]:
        """Loss of crops of one kind, the first of each image first."""
        with torch.no_grad():
            asked = F.normalize(self.teacher(crops).cls.float(), dim=1)
        given = self.student(crops)
        loss = similarity_distillation(
            given,
            asked,
            queue.rows.clone(),  # the backward pass needs it as it was
            student_temperature=self.distillation.student_temperature,
            teacher_temperature=self.distillation.teacher_temperature,
        )
        queue.enqueue(asked[:num_images])
        return loss

    def update_teacher(self, momentum: float) -> None:  # the teacher stands still
        """Nothing follows the optimiser's step."""
