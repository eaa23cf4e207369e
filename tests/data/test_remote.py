"""Images at a web server and in a bucket, at servers that run here, are those of a folder."""

import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from data.image_files import same
from data.test_shards import by_key, divided, shard
from poa.data import remote
from poa.data.images import BadImage
from poa.data.index import open_index
from poa.errors import UserError

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Server(ThreadingHTTPServer):
    """A web server that fails as is said (0: it does not), and counts the images that it gives."""

    daemon_threads = True
    failures: list[int]
    given: list[str]


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def send_head(self) -> Any:
        if self.server.failures and (state := self.server.failures.pop()):
            self.send_error(state)
            return None
        if self.command == "GET" and self.path.endswith(".png"):
            self.server.given.append(self.path)
        return super().send_head()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the folder with ``set``."""
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    with Server(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        server.failures, server.given = [], []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/set"


def test_a_folder_at_a_web_server(tmp_path: Path, files: dict[str, bytes], server: Server) -> None:
    odd = {"my cat/ä #1%20?.png": files["ant/00.png"], "notes.txt": b"text"}
    for name, encoded in odd.items():
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encoded)
    folder, index = open_index(tmp_path / "set"), open_index(address(server))
    assert index.source == address(server)
    assert [index.name(i) for i in range(21)] == [folder.name(i) for i in range(21)]
    assert (index.classes, index.identity.text) == (folder.classes, folder.identity.text)
    assert index.ignored == folder.ignored
    assert same(index, {**files, "my cat/ä #1%20?.png": files["ant/00.png"]})
    assert len(server.given) == 21, "each is fetched once"
    assert open_index(address(server)).folder == index.folder
    (tmp_path / "set/new.png").write_bytes(files["ant/00.png"])
    assert len(open_index(f"{address(server)}")) == 22


def test_a_server_that_fails_for_a_while_is_asked_again(
    files: dict[str, bytes], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.failures = [404, 0]
    with pytest.raises(UserError, match=r"cannot be listed \(\S*/set/.*/: There is no such file\)"):
        open_index(address(server))  # a folder in it fails
    server.failures = [503, 0, 0, 500]
    index = open_index(address(server))
    assert f"{address(server)}/ cannot be reached (ClientResponseError: 50" in caplog.text
    assert "Trying again in 0 s" in caplog.text
    file = remote.RemoteFile(f"{address(server)}/ant/00.png", len(files["ant/00.png"]), 0)
    server.failures = [429, 503]
    assert file.read(0, file.size) == index.read(0)
    server.failures = [503, 503, 503]
    with pytest.raises(UserError, match=r"ant/00.png cannot be reached \(.*503.*further attempts .* with --resume"):
        file._replace(state=1).read(0, 5)
    for state, said in {403: "The server refuses it", 404: "There is no such file"}.items():
        server.failures = [state]
        with pytest.raises(BadImage, match=said):
            file._replace(state=2).read(0, 5)
        assert not server.failures
    with pytest.raises(BadImage, match="has changed since it was indexed"):
        file._replace(state=3, size=10**6).read(0, 10**6)


def test_tars_at_servers(tmp_path: Path, files: dict[str, bytes], server: Server) -> None:
    for number, part in enumerate(divided(files)):
        labelled = by_key({f"{name[:4]}{name[:3]}{name[4:]}": content for name, content in part.items()}, "cls")
        shard(tmp_path / f"tars/{number}.tar", labelled)
    data = address(server).replace("set", "tars/{0..2}.tar")
    here, there = open_index(tmp_path / "tars/{0..2}.tar"), open_index(data)
    assert there.source == data
    assert [there.name(i) for i in range(20)] == [here.name(i) for i in range(20)]
    assert (there.classes, there.identity.text) == (here.classes, here.identity.text)
    assert [there.read(i) for i in range(20)] == [here.read(i) for i in range(20)]
    assert open_index(data).folder == there.folder
    shard(tmp_path / "tars/2.tar", {"dog/new.png": files["ant/00.png"]})
    assert len(open_index(data)) < 20
    (tmp_path / "tars/2.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"tars/2.tar is damaged or not a tar file"):
        open_index(data)
    with pytest.raises(UserError, match=r"tars/3.tar cannot be read \(There is no such file\)"):
        open_index(address(server).replace("set", "tars/{2..3}.tar"))
    with pytest.raises(UserError, match=r"a.zip cannot be read in place, only tars and folders of images can"):
        open_index(f"{address(server)}/a.zip")


def test_addresses_that_do_not_fit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, said in {
        "gopher://x/y": "no way to read gopher:// addresses. Use http://",
        address(server) + "/nothing": "/set/nothing cannot be listed .*There is no such file",
        address(server).replace("/set", "/cache"): "There is no file in .*/cache",
    }.items():
        with pytest.raises(UserError, match=said):
            open_index(data)
    index = open_index(address(server))
    server.shutdown()
    server.server_close()
    assert index.read(0), "it was kept"
    with pytest.raises(UserError, match=r"/set/ cannot be reached \(ClientConnectorError"):
        open_index(address(server))

    def lacking(protocol: str, **_: Any) -> None:
        raise ImportError(f"{protocol} is lacking")

    monkeypatch.setattr(fsspec, "filesystem", lacking)
    for data, said in {"s3a://x": r"poa-ssl\[remote\]", "gcs://x": "pip install gcsfs"}.items():
        with pytest.raises(UserError, match=f"needs a package that is not installed .*{said}"):
            open_index(data)


def test_a_folder_in_a_bucket(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    bucket = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket.mkdir("bucket")
    for name, encoded in files.items():
        bucket.pipe(f"bucket/my set/{name}", encoded)
    folder, index = open_index(tmp_path / "set"), open_index("s3://bucket/my set")
    assert [index.name(i) for i in range(20)] == [folder.name(i) for i in range(20)]
    assert (index.classes, index.identity.text) == (folder.classes, folder.identity.text)
    assert same(index, files)
    assert open_index("s3://bucket/my set").folder == index.folder
    bucket.pipe("bucket/1.tar", shard(tmp_path / "1.tar", files).read_bytes())
    assert same(open_index("s3://bucket/1.tar"), files)
    bucket.pipe("bucket/my set/ant/00.png", files["ant/01.png"])
    changed = open_index("s3://bucket/my set")
    assert changed.read(0) == files["ant/01.png"]
    with pytest.raises(UserError, match="There is no file in s3://bucket/another"):
        open_index("s3://bucket/another")
    server.stop()
