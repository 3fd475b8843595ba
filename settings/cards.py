"""Accelerators to plan for without having them: `align check RECIPE --card t4`."""

import re
from difflib import get_close_matches

from models.errors import InputError
from settings.machine import BF16_COMPUTE_CAPABILITY, Gpu, Machine

_GIB = 2**30
# Memory as CUDA tells it to a program, which is less than what is printed on the box.
_CARDS = {
    "t4": Gpu(name="Tesla T4", compute_capability=7.5, memory_bytes=int(14.74 * _GIB)),
    "v100-16gb": Gpu(name="Tesla V100-16GB", compute_capability=7.0, memory_bytes=int(15.77 * _GIB)),
    "l4": Gpu(name="L4", compute_capability=8.9, memory_bytes=int(22.03 * _GIB)),
    "rtx4090": Gpu(name="GeForce RTX 4090", compute_capability=8.9, memory_bytes=int(23.64 * _GIB)),
    "a100-40gb": Gpu(name="A100-40GB", compute_capability=8.0, memory_bytes=int(39.39 * _GIB)),
    "a100-80gb": Gpu(name="A100-80GB", compute_capability=8.0, memory_bytes=int(79.15 * _GIB)),
    "h100": Gpu(name="H100 80GB", compute_capability=9.0, memory_bytes=int(79.10 * _GIB)),
    "h200": Gpu(name="H200", compute_capability=9.0, memory_bytes=int(139.8 * _GIB)),
}


def find_card(wanted: str, here: Machine) -> Machine:
    """This machine with one accelerator of another kind in it.

    Args:
        wanted: A card by name, or the memory of one that computes bfloat16: `24gb` (10^9 bytes each).
        here: The machine whose cores it has.

    Raises:
        InputError: no card is known by that name.
    """
    size = re.fullmatch(r"(\d{1,4})gb", wanted.lower())
    card = _CARDS.get(wanted.lower())
    if size:
        memory = int(size[1]) * 10**9
        card = Gpu(name=f"a card of {size[1]} GB", compute_capability=BF16_COMPUTE_CAPABILITY, memory_bytes=memory)
    if card is None:
        near = get_close_matches(wanted.lower(), _CARDS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(_CARDS)}, or a size such as 24gb"
        raise InputError(f"command line: --card: unknown card '{wanted}'; {remedy}")
    return Machine(
        device="cuda",
        name=card.name,
        cores=here.cores,
        memory_bytes=card.memory_bytes,
        native_bf16=card.compute_capability >= BF16_COMPUTE_CAPABILITY,
        accelerators=1,
    )
