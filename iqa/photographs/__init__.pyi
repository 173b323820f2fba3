from .bank import Photographs as Photographs, held_out as held_out, list_photographs as list_photographs
from .distortions import (
    KINDS as KINDS,
    MAX_CHAIN as MAX_CHAIN,
    BatchDistortion as BatchDistortion,
    Chains as Chains,
    distort_batch as distort_batch,
    draw_chains as draw_chains,
    to_device as to_device,
)
from .triplets import (
    PhotographTerm as PhotographTerm,
    Triplets as Triplets,
    make_triplets as make_triplets,
    order_loss as order_loss,
)
