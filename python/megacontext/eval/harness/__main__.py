"""lm-evaluation-harness with `--model megacontext` known: python -m megacontext.eval.harness ..."""

from __future__ import annotations

import os
import sys


def main() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        sys.exit(
            "error: lm-evaluation-harness is not installed: pip install 'megacontext[lm-eval]'"
        )
    # Exported tasks are files: nothing is looked for elsewhere.
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    from lm_eval.__main__ import cli_evaluate

    import megacontext.eval.harness.lm_eval_model  # noqa: F401

    cli_evaluate()


if __name__ == "__main__":
    main()
