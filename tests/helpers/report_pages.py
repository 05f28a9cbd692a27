"""Pages of sift-report, read back, and work dirs written by hand."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from sift_mm.cli import html_report

VOID = {'meta', 'img', 'br', 'link'}


class Page(HTMLParser):
    """Rows of tables, by the title of their section, and balanced tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.cell, self.title = [], {}, None, ''
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag == 'tr':
            self.tables.setdefault(self.title, []).append([])
        if tag in ('th', 'td', 'h2', 'summary'):
            self.cell = ''

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ('th', 'td'):
            self.tables[self.title][-1].append(self.cell)
        if tag in ('h2', 'summary'):
            self.title = self.cell

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def rows(self, title):
        """Return the rows of a table as dicts, by their first cell."""
        head, *rows = self.tables[title]
        return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def report(*words):
    """Run the command; return text and parsed page."""
    html_report.main([*map(str, words), '--out', 'out'])
    text = Path('out/report.html').read_text()
    assert '<script' not in text and not re.search(r'(src|href)="http', text)
    return text, Page(text)


def charts(text):
    """Return the SVG of each chart by its title."""
    found = re.findall(
        r'<svg role="img" aria-label="(.*?)"(.*?)</svg>', text, re.S
    )
    return dict(found)


def read_csv(name):
    with Path('out', name).open() as stream:
        return list(csv.DictReader(stream))


def write_tested(folder, seed, config, **result):
    """Write a work dir of a sweep's run that is tested."""
    Path(folder).mkdir(parents=True)
    if config:
        logs = Path(folder, '20260101_000000', 'vis_data')
        logs.mkdir(parents=True)
        (logs / 'config.py').write_text(
            f'{config}\nrandomness = dict(seed={seed})'
        )
    Path(folder, 'result.json').write_text(json.dumps(result))
