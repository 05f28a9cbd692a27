"""The page of a report: sections, filled into page.html."""

from collections.abc import Mapping
from pathlib import Path
from time import strftime

from jinja2 import Environment, FileSystemLoader

from sift_mm.cli.reports.charts import swatch
from sift_mm.cli.reports.layer_history import Layers
from sift_mm.cli.reports.page_charts import (
    comparison_charts,
    layer_charts,
    learning_charts,
    look,
    mask_charts,
    spectral_charts,
)
from sift_mm.cli.reports.page_tables import (
    comparison,
    facts,
    flops_notes,
    headline,
    layer_table,
    machine_rows,
    missing,
)
from sift_mm.cli.reports.run_groups import Comparison, network_rows
from sift_mm.cli.reports.sample_pictures import Samples


def render(
    compared: Comparison,
    layers: Mapping[str, Layers],
    samples: Samples,
    title: str,
) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, rows = look(compared), network_rows(compared)
    shown = {
        name: {
            'charts': layer_charts(found),
            'table': layer_table(found),
            'pictures': found.pictures,
            'first': found.tables[0][0] if found.tables else '',
            'last': found.tables[-1][0] if found.tables else '',
        }
        for name, found in layers.items()
        if found.logged or found.tables
    }
    charts = {
        'learning': learning_charts(compared),
        'comparison': comparison_charts(compared),
        'masks': mask_charts(compared),
        'spectral': spectral_charts(compared, layers),
    }
    return environment.get_template('page.html').render(
        title=title,
        now=strftime('%Y-%m-%d %H:%M'),
        headline=headline(compared, rows),
        legend=[
            (group.name, swatch(style[group.name]))
            for group in compared.groups
        ],
        facts=facts(rows),
        flops=flops_notes(compared),
        machines=machine_rows(compared),
        comparison=comparison(rows, compared.digits),
        dense=compared.dense[0].name if compared.dense else None,
        unit=compared.unit,
        charts={key: [*found] for key, found in charts.items()},
        layers=shown,
        samples=samples,
        missing=missing(compared, layers, samples),
    )
