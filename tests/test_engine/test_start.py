"""Tests of the checks at the start of a run."""

from types import SimpleNamespace

from torch import nn

from sift_mm.engine.start import wrong_heads


class Head(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes


def test_heads_with_another_number_of_classes_are_named():
    roi_head = nn.Module()
    roi_head.bbox_head = nn.ModuleList([Head(3), Head(80)])
    roi_head.mask_head = Head(2)
    model = nn.Module()
    model.roi_head = roi_head
    model.rpn_head = Head(1)  # of proposals
    model.auxiliary_head = Head(2)  # of edges
    data = SimpleNamespace(metainfo=dict(classes=('person', 'car', 'dog')))
    assert [*wrong_heads(model, data)] == [
        f'model.roi_head.{name} has num_classes={number}, and the training '
        'data has 3 classes (person, car, dog): set num_classes=3, '
        'unless this is meant.'
        for name, number in (('bbox_head.1', 80), ('mask_head', 2))
    ]
    assert [*wrong_heads(model, SimpleNamespace(metainfo={}))] == []
