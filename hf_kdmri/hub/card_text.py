"""Fixed texts of the model cards: what each split means, code that readers copy, and citations."""

from __future__ import annotations

SPLITS = {
    "patient_groups": (
        "Five folds, stratified by class and grouped by patient: all slices of a patient group (ids that differ only "
        "in a letter suffix count as one) are in the training, the validation **or** the test split, never in two."
    ),
    "cvind": (
        "The authors' own five folds (`cvind.mat`), grouped by patient id, for comparison with the literature. **They "
        "divide 15 of the 18 groups of ids that are most likely one patient each, so they may leak.** The folds by "
        "patient group are the ones to trust."
    ),
    "random_slices": (
        "**Slices split at random, to reproduce older reports: this split leaks.** Slices of one patient are in "
        "training and test, so the numbers below show memory and say nothing about new patients."
    ),
}

PIPELINE_SNIPPET = """
from transformers import pipeline

classify = pipeline("image-classification", model="{model}")
print(classify("slice.png"))  # 8-bit; for 16-bit images see "Things that will bite you"
"""

TIMM_SNIPPET = """
import timm
import torch
from PIL import Image

model = timm.create_model("{model}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    probabilities = model(transform(Image.open("slice.png").convert("RGB"))[None]).softmax(-1)[0]
print(dict(zip(model.pretrained_cfg["label_names"], probabilities.tolist())))
"""

WINDOW_SNIPPET = """
import numpy as np
from PIL import Image

raw = np.asarray(Image.open("slice_16bit.png")).astype("float64")
low, high = np.percentile(raw, (0.1, 99.9))
pixels = (np.clip((raw - low) / (high - low), 0, 1) * 255).round().astype("uint8")
image = Image.fromarray(pixels).convert("RGB")  # ready for the pipeline
"""

CITATION = """
@article{cheng2015enhanced,
  author  = {Cheng, Jun and Huang, Wei and Cao, Shuangliang and Yang, Ru and Yang, Wei and Yun, Zhaoqiang and Wang, Zhijian and Feng, Qianjin},
  title   = {Enhanced Performance of Brain Tumor Classification via Tumor Region Augmentation and Partition},
  journal = {PLoS ONE}, volume = {10}, number = {10}, pages = {e0140381}, year = {2015},
  doi     = {10.1371/journal.pone.0140381}
}

@article{cheng2016retrieval,
  author  = {Cheng, Jun and Yang, Wei and Huang, Meiyan and Huang, Wei and Jiang, Jun and Zhou, Yujia and Yang, Ru and Zhao, Jie and Feng, Yanqiu and Feng, Qianjin and Chen, Wufan},
  title   = {Retrieval of Brain Tumors by Adaptive Spatial Pooling and Fisher Vector Representation},
  journal = {PLoS ONE}, volume = {11}, number = {6}, pages = {e0157112}, year = {2016},
  doi     = {10.1371/journal.pone.0157112}
}

@misc{cheng2017brain,
  author    = {Cheng, Jun},
  title     = {brain tumor dataset},
  publisher = {figshare}, year = {2017},
  doi       = {10.6084/m9.figshare.1512427}
}
"""  # noqa: E501

METHOD_CITATION = """
@article{hinton2015distilling,
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  title   = {Distilling the Knowledge in a Neural Network},
  journal = {arXiv:1503.02531}, year = {2015}
}
"""
