"""The product document's offline test: `taco_llm bench throughput` under its old name.

python bench/offline/offline_test.py --model MODEL [--dataset FILE] [--num-prompts N] [engine flags]
"""

import sys

from taco_llm.cli.main import main

sys.exit(main(["bench", "throughput", *sys.argv[1:]]))
