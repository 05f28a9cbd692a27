"""Run a library's own tests against our classes.

    python tests/upstream/run.py mmdet PATH_OF_AN_MMDETECTION_CHECKOUT

The tests stay as they are: before they are collected, the class under test is
replaced by ours, at family=None or without masks. Nothing of theirs is part
of this project, so the checkout is the caller's. Some of the tests fetch
pretrained weights; those of mmengine need the package parameterized.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
BACKBONES = 'tests/test_models/test_backbones/'
RESNET = BACKBONES + 'test_resnet.py'
SUITES = {
    'mmdet': [RESNET],
    'mmseg': [RESNET],
    'mmpretrain': [RESNET, BACKBONES + 'test_resnet_cifar.py'],
    'mmengine': [
        'tests/test_optim/test_optimizer/test_optimizer_wrapper.py',
        'tests/test_hooks/test_ema_hook.py',
    ],
}


def main() -> int:
    """Run the tests; 0 if they pass and reached our classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('library', choices=SUITES)
    parser.add_argument('checkout', type=Path)
    args, rest = parser.parse_known_args()
    root = args.checkout.resolve()
    paths = [root / file for file in SUITES[args.library]]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        parser.error(f'no such test in the checkout: {", ".join(absent)}')
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, 'built.txt')
        log.touch()
        # The environment reaches the processes that tests start, too: each
        # finds sitecustomize.py, which puts our classes in place.
        path = [str(HERE), str(HERE.parents[1])]
        path.append(os.environ.get('PYTHONPATH', ''))
        code = subprocess.run(
            [
                *(sys.executable, '-m', 'pytest', *map(str, paths), '-q'),
                *('-p', 'no:cacheprovider', '-o', 'addopts='),
                *('--rootdir', str(root), *rest),
            ],
            cwd=folder,
            env={
                **os.environ,
                'PYTHONPATH': os.pathsep.join(path),
                'SIFT_MM_SUBSTITUTE': args.library,
                'SIFT_MM_BUILT': str(log),
            },
        ).returncode
        built = Counter(log.read_text().split())
    print(f'built in these tests: {dict(built)}')
    wanted = {'mmengine': ['SparseOptimWrapper']}.get(
        args.library, ['SparseIFTResNet', 'block']
    )
    unreached = [name for name in wanted if not built[name]]
    if unreached:
        print(f'The tests did not reach {", ".join(unreached)}.')
        return 1
    return code


if __name__ == '__main__':
    sys.exit(main())
