"""A driver of its own, for tests that kill it: `python extraction_driver.py CONFIG.json` extracts with the gated teacher."""

import json
import sys
from pathlib import Path

from gated_teachers import GatedTeacher, gated

from cluster import extraction
from fusechat.config import RunConfig
from fusechat.progress import Progress

if __name__ == "__main__":
    extraction.stage.prepare = gated(GatedTeacher)
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    extraction.run(RunConfig.model_validate(values), ["llama"], progress=Progress())
