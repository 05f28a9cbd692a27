"""Stand-ins for the tools train and test, which leave what those leave."""

import json
from pathlib import Path

import pytest

# An epoch of 10 steps of half a second and 20 of one and a half. The last
# checkpoint is as the name of the config says: '..._5e_...'.
TRAIN = """
import json, os, re, signal, sys, time, zipfile
from pathlib import Path
words = sys.argv[1:]
with open('calls.txt', 'a') as file:
    print(json.dumps(['train', os.environ.get('OMP_NUM_THREADS'), *words]),
          file=file)
folder = Path(next(w for w in words if w.startswith('--work-dir='))[11:])
if os.path.exists('misbehave.py'):
    exec(Path('misbehave.py').read_text())
number, unit = re.search(r'(\\d+)([ei])[_.]', Path(words[0]).name).groups()
name = {'e': 'epoch', 'i': 'iter'}[unit] + f'_{number}.pth'
zipfile.ZipFile(folder / name, 'w').close()
(folder / 'last_checkpoint').write_text(f'/elsewhere/{name}')
records = [dict(step=10, loss=2.0, time=0.5), dict(step=1, accuracy=3.0),
           dict(step=30, loss=1.0, time=1.5)]
logs = folder / '20260101_000000/vis_data'
logs.mkdir(parents=True, exist_ok=True)
(logs / 'scalars.json').write_text('\\n'.join(map(json.dumps, records)))
"""
TEST = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open('calls.txt', 'a') as file:
    print(json.dumps(['test', os.environ.get('OMP_NUM_THREADS'), *words]),
          file=file)
assert Path(words[1]).exists()
out = Path(next(w for w in words if w.startswith('--out='))[6:])
out.write_text(Path('metrics.json').read_text())
"""
METRICS = {
    'accuracy/top1': 80.0,
    'coco/bbox_mAP': 0.1,
    'coco/bbox_mAP_50': 0.35,
    'mIoU': 40.0,
    'flops': 2e9,
    'parameters': 12e6,
    'active_parameters': 3e6,
    'density': 0.25,
}


@pytest.fixture
def standins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: None
) -> None:
    """Replace the tools of experiments by fakes in a temporary folder."""
    from sift_mm.cli import experiments

    experiments.content_of.cache_clear()
    for name, text in (('train', TRAIN), ('test', TEST)):
        path = tmp_path / f'{name}_tool.py'
        path.write_text(text)
        monkeypatch.setitem(experiments.TOOLS, name, (str(path),))
    (tmp_path / 'metrics.json').write_text(json.dumps(METRICS))


def new_calls() -> list[list[str]]:
    """Return tool, threads and arguments of each call since the last time."""
    path = Path('calls.txt')
    if not path.exists():
        return []
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return calls
