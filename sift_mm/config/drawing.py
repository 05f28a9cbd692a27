"""Drawing of predictions, by the hook of each library."""

from typing import Any

from mmengine.config import Config

from sift_mm.errors import UserError

# Name, switch and folder argument of each library's visualization hook;
# MMSegmentation's draws into the folder of the visualizer.
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
    """Enable the visualization hook of the config's library, in place.

    Args:
        cfg (Config): Config, changed in place.
        show (bool): Whether to show windows.
        folder (str, optional): Folder to draw into.
        wait_time (float): Seconds that each window stays.
        interval (int): Draw every n-th sample (classification only).

    Raises:
        UserError: If the scope is none of the three libraries.
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
