"""The iso-FLOP table of docs, and the script that writes it."""

import isoflop_table

from helpers.runs import ROOT
from sift_mm.layers import families


def rows(path):
    lines = path.read_text().splitlines()
    table = [line for line in lines if line.startswith('|')][2:]
    return [
        [cell.strip() for cell in line.strip('|').split('|')] for line in table
    ]


def test_the_table_has_every_member_and_holds():
    found = rows(ROOT / 'docs/isoflop.md')
    assert {tuple(row[:3]) for row in found} == {
        (network, family, f'{sparsity:g}')
        for network in isoflop_table.NETWORKS
        for family in families()
        for sparsity in isoflop_table.SPARSITIES
    }
    for row in found:
        layers, allowed, match = row[4], row[5], float(row[8])
        low, high = map(float, allowed.split(' to '))
        assert low <= float(layers) <= high, row
        assert abs(match - 1) <= 1e-3, row


def test_the_script_writes_what_is_in_docs(tmp_path):
    network, sparsity = 'ResNet-18 CIFAR', 0.5
    options = '--networks', network, '--sparsities', str(sparsity)
    isoflop_table.main([*options, '--out', str(tmp_path / 'table.md')])
    written = rows(tmp_path / 'table.md')
    assert len(written) == len(families())
    assert all(row in rows(ROOT / 'docs/isoflop.md') for row in written)
