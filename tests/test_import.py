"""The package with parts of its surroundings missing."""

from helpers.runs import LIBRARIES, run_without


def test_the_import_changes_nothing_of_mmengine():
    # Nor does it need the libraries. A run sets its files for good.
    run_without(
        LIBRARIES,
        'from mmengine.fileio import file_client, io\n'
        'from mmengine.fileio.backends import registry_utils as files\n'
        'from mmengine.registry import HOOKS\n'
        'from mmengine.runner import CheckpointLoader\n'
        'def state():\n'
        '    return (dict(CheckpointLoader._schemes), dict(files.backends),\n'
        '            dict(files.prefix_to_backends),\n'
        '            dict(io.backend_instances))\n'
        'before = state()\n'
        'import sift_mm\n'
        'assert HOOKS.get("SparseTrainingHook")\n'
        'assert state() == before\n'
        'sift_mm.engine.use_safe_files()\n'
        'assert state() != before\n'
        'import sift_mm.backbones as b\n'
        'try: b.mmdet\n'
        'except ImportError as e: assert "pip install" in str(e)\n'
        'else: raise AssertionError\n',
    )


def test_a_library_that_is_broken_is_left_out_with_its_reason():
    # Transformers 5 breaks a module deep in MMPretrain, which MMDetection
    # imports first.
    run_without(
        set(),
        'class Broken:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "mmpretrain.models.multimodal":\n'
        '            return importlib.util.spec_from_loader(name, self)\n'
        '    def create_module(self, spec): pass\n'
        '    def exec_module(self, module): raise TypeError("of its own")\n'
        'sys.meta_path.insert(0, Broken())\n'
        'import sift_mm\n'
        'import sift_mm.backbones as b\n'
        'from mmengine.config import Config\n'
        'from sift_mm.config.libraries import import_library\n'
        'for name in ("mmdet", "mmpretrain"):\n'
        '    try: getattr(b, name)\n'
        '    except ImportError as e:\n'
        '        assert "of its own (TypeError, at " in str(e), e\n'
        '    else: raise AssertionError\n'
        '    try: import_library(Config(dict(default_scope=name)))\n'
        '    except ValueError as e: assert "of its own" in str(e)\n'
        '    else: raise AssertionError\n'
        'assert b.mmseg.SparseIFTResNet\n',
    )
