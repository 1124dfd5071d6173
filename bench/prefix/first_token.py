"""Time to the first token of a request whose prefix is cached, against one whose prefix is new.

    python bench/prefix/first_token.py MODEL [--prefix 2000] [--question 16] [--repeats 7] [--dtype bfloat16]
        [--device cpu] [--json OUT] [--words "--flag ..."]

One server with the prefix cache. Each repeat makes up a prefix of so many random tokens and asks two
questions after it: the first is cold, the second finds the prefix. So the two kinds take turns, and whatever
else the machine does meets both. A third request, cold again with a prefix of its own and without caching of
anything (a salt of its own), tells that the server has not just warmed up.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from served import Server  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--question", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vocabulary", type=int, default=40000, help="token ids are below this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--words", default="")
    args = parser.parse_args()
    rng = random.Random(7)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(100, args.vocabulary) for _ in range(count)]

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        words = ["--enable-prefix-caching", "--dtype", args.dtype, "--device", args.device]
        server = Server(args.model, words + shlex.split(args.words), Path(folder) / "log")
        try:
            server.complete(tokens(args.prefix + args.question), 2)  # the first request of all pays for pages
            for repeat in range(args.repeats):
                prefix = tokens(args.prefix)
                cold = server.complete(prefix + tokens(args.question), 4)
                warm = server.complete(prefix + tokens(args.question), 4)
                alone = server.complete(prefix + tokens(args.question), 4, cache_salt=f"repeat {repeat}")
                assert cold.cached_tokens == alone.cached_tokens == 0, "a prefix that is new was cached"
                rows.append(
                    {
                        "cold": cold.first,
                        "warm": warm.first,
                        "salted": alone.first,
                        "prompt_tokens": warm.prompt_tokens,
                        "cached_tokens": warm.cached_tokens,
                    }
                )
                print(
                    f"cold {cold.first * 1e3:8.1f} ms  cached {warm.first * 1e3:7.1f} ms "
                    f"({warm.cached_tokens} of {warm.prompt_tokens} tokens)  "
                    f"other salt {alone.first * 1e3:8.1f} ms",
                    flush=True,
                )
        finally:
            server.stop()
    middle = {key: statistics.median(row[key] for row in rows) for key in ("cold", "warm", "salted")}
    print(
        f"medians of {len(rows)}: cold {middle['cold'] * 1e3:.1f} ms, cached {middle['warm'] * 1e3:.1f} ms: "
        f"{middle['cold'] / middle['warm']:.1f} times sooner"
    )
    if args.json:
        args.json.write_text(json.dumps({"medians": middle, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
