"""CLIP R-Precision of finished runs: how often a rendering finds its caption among all captions.

    python -m dreamjax.main --config=r_precision --workdir=runs/r_precision \
        --config.dreams.folder=runs/coco --config.retrieval.captions=captions.txt \
        --config.retrieval.clips='("openai/clip-vit-base-patch32",)'

`dreams.folder` is the folder of a run over a file of prompts (`--config.prompts=captions.txt`), and
`retrieval.captions` that file or a longer list that holds every prompt. The protocol is that of
Dream Fields and DreamFusion: elevation 30 degrees, averaged over azimuths, colour and textureless.
Their captions are 153 object-centric ones of COCO, `queries` of
dreamfields/config/coco_queries_val.py in google-research's repository; write them to a file, one a
line. DreamFusion reports, colour / geometry: 75.1 / 42.5 % (B/32), 77.5 / 46.6 % (B/16), 79.7 /
58.5 % (L/14). CLIPs are fetched once; folders do as well, and several may be given.

Where models of the prompts are at hand, `--config.shapes.meshes=FOLDER_OR_NPZ` compares shapes too.
"""

from dreamjax.evaluate.samples import Samples
from dreamjax.tasks.evaluate import Evaluate


def get_config() -> Evaluate:
    return Evaluate(samples=Samples(per_view=0, random=0))
