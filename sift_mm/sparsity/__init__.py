"""Mask training with plain PyTorch: nothing here knows OpenMMLab."""

from .algorithms import ALGORITHMS, SET, Algorithm, RigL, Static
from .distributions import (
    DISTRIBUTIONS,
    ER,
    ERK,
    Distribution,
    Explicit,
    Uniform,
    UniformPlus,
)
from .initializers import INITIALIZERS, FromWeights, Initializer, Random, TopK
from .masks import MaskSet
from .metrics import MaskHistory, density, training_flops
from .random import generator_for
from .schedules import (
    DROP_FRACTIONS,
    Constant,
    Cosine,
    DropFraction,
    Linear,
    UpdateSchedule,
)
from .select import keep_only_, top_indices
from .targets import (
    select_parameters,
    sparse_parameter_names,
    sparsifiable_parameters,
)
from .trainer import MaskTrainer

__all__ = [
    'ALGORITHMS',
    'DISTRIBUTIONS',
    'DROP_FRACTIONS',
    'ER',
    'ERK',
    'INITIALIZERS',
    'SET',
    'Algorithm',
    'Constant',
    'Cosine',
    'Distribution',
    'DropFraction',
    'Explicit',
    'FromWeights',
    'Initializer',
    'Linear',
    'MaskHistory',
    'MaskSet',
    'MaskTrainer',
    'Random',
    'RigL',
    'Static',
    'TopK',
    'Uniform',
    'UniformPlus',
    'UpdateSchedule',
    'density',
    'generator_for',
    'keep_only_',
    'select_parameters',
    'sparse_parameter_names',
    'sparsifiable_parameters',
    'top_indices',
    'training_flops',
]
