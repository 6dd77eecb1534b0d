"""Print the packages that building the documentation needs: the extra ``docs``, and click."""

from configparser import ConfigParser
from pathlib import Path

if __name__ == "__main__":
    config = ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    extra = config["options.extras_require"].get("docs", raw=True).split("\n")
    needed = config["options"].get("install_requires", raw=True).split("\n")
    packages = [*extra, *(line for line in needed if line.startswith("click"))]
    print(*(line for line in packages if line and not line.startswith("#")))
