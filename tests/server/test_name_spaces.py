"""Who shares what was learnt: by API key where there are several, and by the request's salt."""

from __future__ import annotations

from typing import Any

import pytest
import requests


def seen(server: Any, path: str, key: str = "", **fields: Any) -> int:
    body: dict[str, Any] = {"max_tokens": 1, **fields}
    body |= {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    assert requests.post(server.url + path, json=body, headers=headers, timeout=5).ok
    return server.handle.core.submitted[-1].name_space


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_salts(make_fake: Any, path: str) -> None:
    server = make_fake()
    assert seen(server, path) == 0 == seen(server, path, cache_salt="")
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


@pytest.mark.parametrize("salt", [7, ["a"], "x" * 300])
def test_a_wrong_salt_is_refused(make_fake: Any, salt: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
    answer = requests.post(make_fake().url + "/v1/completions", json=body, timeout=5)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "cache_salt"
