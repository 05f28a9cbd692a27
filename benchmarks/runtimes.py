"""Inference runtimes to compare with, each if it is installed."""

import importlib
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

#: Names of the peers that are not installed.
missing: set[str] = set()


def runtimes(
    name: str, model: nn.Module, x: Tensor
) -> dict[str, Callable[[], object]]:
    """Return forward passes of OpenVINO and ONNX Runtime, if installed."""
    found: dict[str, Callable[[], object]] = {}
    try:
        ov = importlib.import_module('openvino')
        core = ov.Core()
        core.set_property(
            'CPU',
            {
                'INFERENCE_NUM_THREADS': torch.get_num_threads(),
                # The default is bfloat16 on CPUs that support it.
                'INFERENCE_PRECISION_HINT': 'f32',
            },
        )
        compiled = core.compile_model(
            ov.convert_model(model, example_input=x), 'CPU'
        )
        found[f'{name}, OpenVINO'] = partial(compiled, x.numpy())
    except ImportError as error:
        missing.add(f'OpenVINO ({error})')
    try:
        ort = importlib.import_module('onnxruntime')
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        spinning = 'session.intra_op.allow_spinning'
        options.add_session_config_entry(spinning, '0')
        with tempfile.TemporaryDirectory() as folder:
            path = f'{folder}/model.onnx'
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
            session = ort.InferenceSession(path, options)
        feed = {session.get_inputs()[0].name: x.numpy()}
        found[f'{name}, ONNX Runtime'] = partial(session.run, None, feed)
    except ImportError as error:
        missing.add(f'ONNX Runtime ({error})')
    return found
