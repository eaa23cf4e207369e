"""Cost of elasticity: forward and backward of a sub-network cut out of a larger one, against timm's model of that size.

Both run the same arithmetic on the same images, in turns in one process; that their outputs are equal is checked first.
The elastic side includes the cut of all parameters and the gradients that reach the whole of the intact network.

    python benchmarks/elastic_overhead.py [--size 384x12] [--intact 768x12] [--batch 16]
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from measure import in_turns, machine, ratio
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.families.vit import ViT, ViTBackbone

TARGET = 1.08
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure and print."""
    arguments = parse()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.precision]
    size, intact = Size.parse(arguments.size), Size.parse(arguments.intact)
    fused = not (device.type == "cpu" and dtype == torch.bfloat16)  # as in training
    space = SearchSpace((size, intact), (1, 1))
    family = ViT(space, image_size=arguments.image_size, patch_size=arguments.patch_size, fused_attention=fused)
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size, device=device)
    whole = family.build(intact).to(device)
    sub_networks = SubNetworks(
        family.build,
        intact,
        source=family.source,
        groups=family.groups,
        castable=lambda name: name.startswith("model."),
    )
    plain = family.build(size).model.to(device)
    extracted = sub_networks.extract(size, whole)
    assert isinstance(extracted, ViTBackbone)
    plain.load_state_dict(extracted.model.state_dict())
    autocast = partial(torch.autocast, device.type, dtype=dtype) if dtype != torch.float32 else nullcontext
    parameters = dict(whole.named_parameters())

    def elastic(views: Tensor) -> Tensor:
        network = sub_networks.bind(size, parameters, training=True, dtype=None if dtype == torch.float32 else dtype)
        tokens = network(views)
        return torch.cat([tokens.cls[:, None], tokens.patches], dim=1)

    check_equal(plain.forward_features, elastic, images, autocast)
    seconds = in_turns(
        {
            "plain": lambda _: forward_backward(plain.forward_features, images, autocast),
            "elastic": lambda _: forward_backward(elastic, images, autocast),
        },
        rounds=arguments.rounds,
        device=device,
        between=lambda: forget_gradients([plain, whole]),
    )
    report(arguments, machine(device), seconds)


def parse() -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="384x12")
    parser.add_argument("--intact", default="768x12")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; torch's own choice by default")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def check_equal(
    plain: Callable[[Tensor], Tensor],
    elastic: Callable[[Tensor], Tensor],
    images: Tensor,
    autocast: Callable[[], AbstractContextManager[object]],
) -> None:
    """Refuse to compare two networks that do not compute the same."""
    with torch.no_grad(), autocast():
        assert torch.equal(plain(images[:2]), elastic(images[:2])), "the two networks give different features"


def forward_backward(
    network: Callable[[Tensor], Tensor], images: Tensor, autocast: Callable[[], AbstractContextManager[object]]
) -> None:
    """One pass there and back, from all tokens."""
    with autocast():
        tokens = network(images)
    torch.autograd.backward(tokens.float().square().mean())


def forget_gradients(networks: Iterable[nn.Module]) -> None:
    """Start every pass without gradients."""
    for network in networks:
        network.zero_grad(set_to_none=True)


def report(arguments: argparse.Namespace, where: str, seconds: dict[str, list[float]]) -> None:
    """Print the medians and their ratio."""
    print(where)
    print(
        f"{arguments.size} of {arguments.intact}, batch {arguments.batch}, {arguments.image_size} px, "
        f"patch {arguments.patch_size}, {arguments.precision}, {arguments.device}; "
        f"forward and backward, median of {arguments.rounds} rounds in turns"
    )
    for name, values in seconds.items():
        print(f"{name:8} {1000 * statistics.median(values):9.1f} ms   (least {1000 * min(values):.1f})")
    print(f"ratio    {ratio(seconds['elastic'], seconds['plain']):9.3f}      (target: at most {TARGET})")


if __name__ == "__main__":
    main()
