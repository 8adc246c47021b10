"""All but one thing is in pyproject.toml: the page of `space/`, at the top so that it can be uploaded as it is.

In a wheel it lies inside the package. pyproject.toml can either find packages or map one folder, not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hf_kdmri*", "dataset_script*", "model_cards*"]), "hf_kdmri.space"],
    package_dir={"hf_kdmri.space": "space"},
    package_data={"": ["*.csv", "*.md", "*.jinja", "*.json", "*.bib"], "hf_kdmri.space": ["**/*"]},
    include_package_data=False,  # else setuptools takes the page's folders for packages that were forgotten
)
