"""Drawing of predictions, by the hook of each library."""

from typing import Any

from mmengine.config import Config

from sift_mm.errors import UserError

# How the libraries name their visualisation hook, its switch, and its folder;
# MMSegmentation's has none and draws into that of the visualizer.
DRAWING_HOOKS = {
    'mmdet': ('DetVisualizationHook', 'draw', 'test_out_dir'),
    'mmseg': ('SegVisualizationHook', 'draw', None),
    'mmpretrain': ('VisualizationHook', 'enable', 'out_dir'),
}


def enable_drawing(
    cfg: Config,
    show: bool,
    folder: str | None,
    wait_time: float,
    interval: int,
) -> None:
    """Switch the visualisation hook of the config's library on, in place.

    It shows windows, each for some seconds, or draws into a folder; every
    n-th sample, of classification only.

    Raises:
        UserError: If it is none of the three libraries.
    """
    scope = cfg.get('default_scope')
    if scope not in DRAWING_HOOKS:
        raise UserError(
            '--show and --show-dir work for the scopes '
            f'{", ".join(DRAWING_HOOKS)}, not for {scope}.'
        )
    name, switch, key = DRAWING_HOOKS[scope]
    hook: dict[str, Any] = {switch: True, 'show': show, 'wait_time': wait_time}
    if scope == 'mmpretrain':
        hook['interval'] = interval
    if folder and key:
        hook[key] = folder
    elif folder:
        cfg.visualizer.save_dir = folder
        if not cfg.visualizer.get('vis_backends'):
            cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    hooks = cfg.get('default_hooks') or {}
    hook['type'] = hooks.get('visualization', {}).get('type', name)
    cfg.merge_from_dict({'default_hooks.visualization': hook})
