"""Mask training with plain PyTorch, without OpenMMLab.

Every file of this folder is imported, so that a new file that registers an
algorithm, structure, distribution, initializer or drop fraction is found.
"""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.algorithms import (
    ALGORITHMS,
    SET,
    Algorithm,
    LayerState,
    RigL,
    SRigL,
    Static,
)
from sift_mm.sparsity.distributions import (
    DISTRIBUTIONS,
    ER,
    ERK,
    Distribution,
    Explicit,
    Uniform,
    UniformPlus,
)
from sift_mm.sparsity.execution import (
    ExecutionMode,
    SparseExecution,
)
from sift_mm.sparsity.initializers import (
    INITIALIZERS,
    SNIP,
    FromWeights,
    GraSP,
    Initializer,
    NetworkInitializer,
    Random,
    SynFlow,
    TopK,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import MaskHistory, density, training_flops
from sift_mm.sparsity.options import MaskOptions, RunOptions
from sift_mm.sparsity.parameters import (
    select_parameters,
    sparse_parameter_names,
    sparsifiable_parameters,
)
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.schedules import (
    DROP_FRACTIONS,
    Constant,
    Cosine,
    DropFraction,
    Linear,
    UpdateSchedule,
)
from sift_mm.sparsity.selection import apply_masks_, top_mask
from sift_mm.sparsity.sparse_training import SparseTraining
from sift_mm.sparsity.structures import (
    NM,
    STRUCTURES,
    Block,
    ConstantFanIn,
    Structure,
    Unstructured,
)
from sift_mm.sparsity.trainer import MaskTrainer
from sift_mm.sparsity.updates import UpdateReport

__all__ = [
    'ALGORITHMS',
    'DISTRIBUTIONS',
    'DROP_FRACTIONS',
    'ER',
    'ERK',
    'INITIALIZERS',
    'NM',
    'SET',
    'SNIP',
    'STRUCTURES',
    'Algorithm',
    'Block',
    'Constant',
    'ConstantFanIn',
    'Cosine',
    'Distribution',
    'DropFraction',
    'ExecutionMode',
    'Explicit',
    'FromWeights',
    'GraSP',
    'Initializer',
    'LayerState',
    'Linear',
    'MaskHistory',
    'MaskOptions',
    'MaskSet',
    'MaskTrainer',
    'NetworkInitializer',
    'Random',
    'RigL',
    'RunOptions',
    'SRigL',
    'SparseExecution',
    'SparseTraining',
    'Static',
    'Structure',
    'SynFlow',
    'TopK',
    'Uniform',
    'UniformPlus',
    'Unstructured',
    'UpdateReport',
    'UpdateSchedule',
    'apply_masks_',
    'density',
    'generator_for',
    'select_parameters',
    'sparse_parameter_names',
    'sparsifiable_parameters',
    'top_mask',
    'training_flops',
]

import_modules(__name__)
