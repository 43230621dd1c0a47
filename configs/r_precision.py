"""CLIP R-Precision of finished runs: how often a rendering finds its caption among all captions.

    python -m dreamjax.main --config=configs/r_precision.py --workdir=runs/r_precision \
        --config.eval.dreams=runs/coco --config.eval.prompts=captions.txt \
        --config.eval.clips='("openai/clip-vit-base-patch32",)'

`eval.dreams` is the folder of a run over a file of prompts (`--config.prompts=captions.txt`), and
`eval.prompts` that file or a longer list that holds every prompt. The protocol is that of Dream
Fields and DreamFusion: elevation 30 degrees, averaged over azimuths, colour and textureless. Their
captions are 153 object-centric ones of COCO, `queries` of dreamfields/config/coco_queries_val.py in
google-research's repository; write them to a file, one a line. DreamFusion reports,
colour / geometry: 75.1 / 42.5 % (B/32), 77.5 / 46.6 % (B/16), 79.7 / 58.5 % (L/14). CLIPs are
fetched once; folders do as well, and several may be given.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The values that people override on the command line."""
    config = config_dict.ConfigDict()
    config.task = "evaluate"
    config.samples = config_dict.ConfigDict(dict(per_view=0, random=0))
    config.eval = config_dict.ConfigDict(dict(dreams="", prompts="", clips=(), clip_size=128))
    return config
