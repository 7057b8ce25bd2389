"""The README's Python blocks, run one after the other as a reader would."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_s_code_runs(cluster: None) -> None:
    """Every assertion that the README makes holds, on a real cluster."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
