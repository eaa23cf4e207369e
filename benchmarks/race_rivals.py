"""SimCLR and DINO by lightly's losses and heads, for plain timm networks (https://github.com/lightly-ai/lightly).

Networks, images, crops, precision and the processor are those of our own runs, so what differs is what is learned and
how. Learning rates and heads are those of lightly's CIFAR-10 benchmark (SimCLR) and, as that one is for ResNets, those
of DINO (arXiv 2104.14294) with a head and a teacher for small data (DINO). lightly is imported when it is needed.
"""

import copy
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budget import Spent, cpu_seconds, epochs_within, one_thread
from poa.config.pretraining import Config
from poa.data.augment import augment
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.data.loader import Cropping, CropSchedule, batches
from poa.data.masks import Masking
from poa.data.sampler import steps_per_epoch
from poa.data.views import Views
from poa.export.timm import Blueprint, write_model
from poa.families.base import Backbone
from poa.models.registry import family_of
from poa.pretraining.build import precision_of, suited
from poa.training.schedules import cosine

KINDS = ("simclr", "dino")
CPU = torch.device("cpu")
SIMCLR_LR, SIMCLR_DECAY = 0.06 / 128, 5e-4
"""SGD: learning rate for each image of a batch, and weight decay."""
DINO_LR, DINO_DECAY, DINO_WARMUP = 1e-3, 0.04, 0.1
"""AdamW: learning rate, weight decay, and the share of the run in which the rate rises."""
DINO_HEAD, DINO_PROTOTYPES = {"hidden_dim": 512, "bottleneck_dim": 128}, 256
DINO_MOMENTUM = (0.95, 1.0)
DINO_FROZEN = 1 / 30
"""Share of the run in which the last layer of the head rests."""


def is_installed() -> bool:
    """Whether there is lightly."""
    return importlib.util.find_spec("lightly") is not None


class SimCLR(nn.Module):
    """A backbone with lightly's head, trained by NT-Xent."""

    warmup = 0.0

    def __init__(self, backbone: Backbone, batch_size: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        width = backbone.num_features
        self.backbone, self.head, self.criterion = backbone, SimCLRProjectionHead(width, width, 128), NTXentLoss()
        self.lr = SIMCLR_LR * batch_size

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=SIMCLR_DECAY)

    def forward(self, views: Views) -> Tensor:
        """The loss of both global crops; each is a batch of its own for BatchNorm, as in lightly's examples."""
        first, second = (self.head(self.backbone(crops).cls.float()) for crops in views.globals.chunk(2))
        loss: Tensor = self.criterion(first, second)
        return loss

    def before_update(self, done: float) -> None:
        """Nothing."""

    def after_update(self, done: float) -> None:
        """Nothing."""

    @property
    def exported(self) -> Backbone:
        """What is scored."""
        return self.backbone


class DINO(nn.Module):
    """Student and teacher with lightly's heads, trained by its DINO loss."""

    warmup = DINO_WARMUP
    lr = DINO_LR

    def __init__(self, backbone: Backbone, num_locals: int, prototypes: int = DINO_PROTOTYPES) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules.heads import DINOProjectionHead

        super().__init__()
        width, shape = backbone.num_features, {**DINO_HEAD, "output_dim": prototypes}
        heads = [DINOProjectionHead(width, freeze_last_layer=1, **shape) for _ in range(2)]
        self.student = nn.ModuleDict({"backbone": backbone, "head": heads[0]})
        self.teacher = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "head": heads[1]})
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.criterion, self._num_locals = DINOLoss(output_dim=prototypes), num_locals

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; biases and norms do not decay."""
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim < 2]
        groups = [{"params": matrices, "weight_decay": DINO_DECAY}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr)

    def forward(self, views: Views) -> Tensor:
        """The student's outputs of all crops learn those of the teacher for the global ones."""
        with torch.no_grad():
            targets = _outputs(self.teacher, views.globals).chunk(2)
        outputs = [*_outputs(self.student, views.globals).chunk(2)]
        if self._num_locals:
            outputs += _outputs(self.student, views.locals).chunk(self._num_locals)
        loss: Tensor = self.criterion(list(targets), outputs)
        return loss

    def before_update(self, done: float) -> None:
        """Let the last layer rest at first."""
        head: Any = self.student["head"]
        head.cancel_last_layer_gradients(current_epoch=0 if done < DINO_FROZEN else 1)

    def after_update(self, done: float) -> None:
        """Move the teacher."""
        from lightly.models.utils import update_momentum

        momentum = cosine(round(1000 * done), base=DINO_MOMENTUM[0], final=DINO_MOMENTUM[1], num_steps=1000)
        update_momentum(self.student, self.teacher, m=momentum)

    @property
    def exported(self) -> Backbone:
        """What is scored."""
        backbone = self.teacher["backbone"]
        assert isinstance(backbone, Backbone)
        return backbone


def _outputs(branch: nn.ModuleDict, crops: Tensor) -> Tensor:
    output: Tensor = branch["head"](branch["backbone"](crops).cls.float())
    return output


def train_rival(kind: str, config: Config, minutes: float, folder: Path) -> Spent:
    """Train one plain network for as many epochs as the minutes allow, and write it for timm.

    Args:
        kind: One of ``KINDS``.
        config: Of one size: its network, images, crops, batch size and seed.
        minutes: Of CPU time.
        folder: Of the network.
    """
    one_thread()
    index = open_index(config.data, limit=config.limit)
    steps = steps_per_epoch(len(index), config.batch_size)
    _, step = _prepared(kind, config, num_steps=config.epochs * steps)
    epochs = epochs_within(minutes, seconds=cpu_seconds(step, num_steps=config.epochs * steps), steps=steps)
    began = time.process_time()
    learner, step = _prepared(kind, config, num_steps=epochs * steps)
    for number in range(epochs * steps):
        step(number)
    spent = Spent(epochs, (time.process_time() - began) / 60)
    family, views = family_of(config), config.views
    network = family.build(family.space.intact)  # with the attention that timm has
    network.load_state_dict(learner.exported.state_dict())
    write_model(
        network.model,
        Blueprint(*family.timm_config(family.space.intact)),
        folder,
        preprocessing=Preprocessing(views.global_size, config.scoring_resize, views.mean, views.std),
        card=f"lightly, {kind}\n",
    )
    return spent


def _prepared(kind: str, config: Config, *, num_steps: int) -> tuple[SimCLR | DINO, Callable[[int], None]]:
    """A fresh network, and a step of its training."""
    dtype = precision_of(config, CPU)
    family = suited(family_of(config), dtype, CPU)
    index, views = open_index(config.data, limit=config.limit), config.views
    torch.manual_seed(config.seed)
    backbone = family.build(family.space.intact)
    learner = SimCLR(backbone, config.batch_size) if kind == "simclr" else DINO(backbone, views.num_locals)
    optimizer = learner.train().optimizer()
    whole = Cropping(views, Masking(grid=family.mask_grid(views.global_size), share=0.0, ratio=(0.0, 0.0)))
    drawn: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            warm = round(learner.warmup * num_steps)
            group["lr"] = cosine(number, base=learner.lr, final=0.0, num_steps=num_steps, warmup_steps=warm)
        ((raw,),) = batches(index, crops=CropSchedule(whole, whole), start_step=number, num_steps=1, **drawn)
        crops = augment(raw, augmentation=views, device=CPU, memory_format=family.memory_format)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = learner(crops)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        learner.before_update(number / num_steps)
        optimizer.step()
        learner.after_update(number / num_steps)

    return learner, step
