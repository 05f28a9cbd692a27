"""The page's code runs as it is written, where OpenMMLab is not installed."""

import re

from helpers.runs import LIBRARIES, ROOT, run_without

PAGE = ROOT / 'docs/python.md'
SETUP = """
import sift_mm.sparsity, sift_mm.flops, sift_mm.flops.isoflop
import sift_mm.data  # The table alone: no library of theirs.
assert sift_mm.transform and sift_mm.deploy.fold
slow = {'torchvision', 'pycocotools', 'scipy', 'mmengine'}
assert not slow & sys.modules.keys()
import torch, torchvision
torch.manual_seed(0)
def resnet18(num_classes):  # any depth shows what the page says
    block = torchvision.models.resnet.BasicBlock
    model = torchvision.models.ResNet(block, [1, 1, 1, 1])
    model.layer3, model.layer4 = torch.nn.Identity(), torch.nn.Identity()
    model.fc = torch.nn.Linear(128, num_classes)
    return model
torchvision.models.resnet18 = resnet18
# Of smaller images, a bfloat16 gradient of PyTorch 2.12 is at times not finite
# on CPUs with AVX-512.
loader = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))] * 11
"""
CHECKS = """
saved = torch.load('last.pth')[2]
assert sparse.trainer.steps == 11 and 0 <= accuracy <= 1
assert saved['history']['ever'] and abs(sparse.density - 0.25) < 1e-3
parameters = dict(model.named_parameters())
for name, mask in sparse.masks.items():
    assert torch.equal(mask, saved['masks'][name])
    assert not parameters[name][~mask].any()
    assert parameters[name][mask].any()
assert sparse.trainer.history.itop_rate() > sparse.density + 0.01
assert 'mmengine' not in sys.modules
"""


def test_the_code_of_the_page_runs(tmp_path):
    code, *_ = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    run_without({'mmengine', *LIBRARIES}, SETUP + code + CHECKS, tmp_path)
