"""Who shares what was learnt: by API key where there are several, and by the request's salt."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from taco_llm.cache_root import cache_root


def seen(server: Any, path: str, key: str = "", **fields: Any) -> int:
    body: dict[str, Any] = {"max_tokens": 1, **fields}
    body |= {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    assert requests.post(server.url + path, json=body, headers=headers, timeout=60).ok
    return server.handle.core.submitted[-1].name_space


def root(server: Any, path: str, key: str = "", **fields: Any) -> bytes:
    seen(server, path, key, **fields)
    return server.handle.core.submitted[-1].cache_root


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_salts(make_fake: Any, path: str) -> None:
    server = make_fake()
    assert seen(server, path) == 0
    salted = seen(server, path, cache_salt="a")
    assert 0 < salted < 2**64 and salted == seen(server, path, cache_salt="a")
    assert seen(server, path, cache_salt="b") not in (0, salted)


def test_one_key_is_one_tenant(make_fake: Any) -> None:
    assert seen(make_fake(api_key=["one"]), "/v1/completions", "one") == 0


def test_each_of_several_keys_is_a_tenant(make_fake: Any, tmp_path: Any) -> None:
    server = make_fake(api_key=["one", "two"])
    one, two = (seen(server, "/v1/completions", key) for key in ("one", "two"))
    assert len({0, one, two}) == 3
    assert one == seen(server, "/v1/chat/completions", "one")
    salted = {seen(server, "/v1/completions", key, cache_salt="s") for key in ("one", "two")}
    assert len(salted | {0, one, two}) == 5
    again = make_fake(api_key=["two", "one"])  # a restart, in another order
    assert seen(again, "/v1/completions", "one") == one
    (tmp_path / "keys").write_text("one\n")
    from_file = make_fake(api_key_file=str(tmp_path / "keys"))  # to which more may be added at any time
    assert seen(from_file, "/v1/completions", "one") == one


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_the_prefix_cache_is_kept_apart_by_salts(make_fake: Any, path: str) -> None:
    server = make_fake()
    assert root(server, path) == bytes(32)
    salted = root(server, path, cache_salt="a")
    assert len(salted) == 32 and salted == root(server, path, cache_salt="a")
    assert len({bytes(32), salted, root(server, path, cache_salt="b")}) == 3


def test_the_prefix_cache_is_kept_apart_by_keys_unless_it_is_shared(make_fake: Any) -> None:
    path, keys = "/v1/completions", ["one", "two"]
    assert root(make_fake(api_key=["one"]), path, "one") == bytes(32)
    apart = make_fake(api_key=keys)
    one, two = (root(apart, path, key) for key in keys)
    assert len({bytes(32), one, two}) == 3
    assert root(make_fake(api_key=keys[::-1]), path, "one") == one  # after a restart
    salted = {root(apart, path, key, cache_salt="s") for key in keys}
    assert len(salted | {one, two}) == 4
    shared = make_fake(api_key=keys, prefix_cache_shared=True)
    assert root(shared, path, "one") == root(shared, path, "two") == bytes(32)
    assert root(shared, path, "one", cache_salt="s") == root(shared, path, "two", cache_salt="s") != one
    assert len({seen(shared, path, key) for key in keys}) == 2  # what is drafted stays with its key


def test_parts_of_a_root_cannot_be_mistaken_for_each_other() -> None:
    key, other = b"\1" * 32, b"\2" * 32
    roots = [
        cache_root(key), cache_root(salt="\1" * 32), cache_root(adapter=key), cache_root(key, "a"),
        cache_root(key + b"a"), cache_root(other, "a"), cache_root(salt="a", adapter=key), cache_root(),
    ]  # fmt: skip
    assert len(set(roots)) == len(roots) and all(len(one) == 32 for one in roots)


@pytest.mark.parametrize("salt", [7, ["a"], "x" * 300, ""])
def test_a_wrong_salt_is_refused(make_fake: Any, salt: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
    answer = requests.post(make_fake().url + "/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"
