import pytest
from chat_server import ChatServer
from construction import good_reply


@pytest.fixture
def server(monkeypatch):
    """An endpoint on loopback, which no proxy and no key of the environment stand before."""
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ChatServer(good_reply)
    yield server
    server.close()
