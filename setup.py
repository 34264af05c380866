"""The part of the packaging that pyproject.toml cannot say: a wheel carries data/, which stands
beside course_utils/ here, as ``course_utils/data``. `course_utils.DATA` finds either. It carries
the script and the style of the interactive circuit, too.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["course_utils*"]), "course_utils.data"],
    package_dir={"course_utils.data": "data"},
    package_data={"course_utils.data": ["**/*"], "course_utils.display": ["*.css", "*.js"]},
    include_package_data=False,  # only what is said here
)
