"""All but two things are in pyproject.toml: the page of `space/` and the student of `models/`, each fit to be uploaded.

In a wheel they lie inside the package. pyproject.toml can either find packages or map one folder, not both.
"""

from setuptools import find_packages, setup

FOLDERS = {"hf_kdmri.space": "space", "hf_kdmri.student": "models/kdmri-student"}

setup(
    packages=[*find_packages(include=["hf_kdmri*", "dataset_script*", "model_cards*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={"": ["*.csv", "*.md", "*.jinja", "*.json", "*.bib"], **{package: ["**/*"] for package in FOLDERS}},
    include_package_data=False,  # else setuptools takes their folders for packages that were forgotten
)
