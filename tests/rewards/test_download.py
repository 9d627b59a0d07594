"""Downloads against a server on 127.0.0.1 that cuts, stalls, lies and refuses."""

from __future__ import annotations

import copy
import errno
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comfyui_dno.rewards.base import RewardError
from comfyui_dno.rewards.files import fetch, part, stream
from comfyui_dno.rewards.files.download import download
from comfyui_dno.rewards.files.missing import is_complete
from comfyui_dno.rewards.files.source import RemoteFile, Source
from comfyui_dno.rewards.files.stream import Patience
from comfyui_dno.rewards.heartbeat import beating
from comfyui_dno.tests.rewards.file_server import FileServer

BODY = hashlib.shake_256(b"weights").digest(700_001)
OTHER = hashlib.shake_256(b"other weights").digest(700_001)
HASTY = Patience(connect=20.0, stall=20.0, retries=2, pause=0.05)
IMPATIENT = Patience(connect=0.3, stall=0.5, retries=2, pause=0.05)


class Cancelled(Exception):
    pass


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def model(url: str, pinned: bytes | None = None, size: int = 0) -> Source:
    """A model of one file, with its checksum pinned where `pinned` is given."""
    file = RemoteFile(url, size=size, sha256=sha256(pinned) if pinned else "")
    return Source("model.pt", (file,), "MIT", "https://example.org/model")


def quiet(done: int, total: int) -> None:
    pass


def fetch_model(source: Source, root: Path, patience: Patience = HASTY) -> Path:
    return download(source, root, quiet, patience)


def cancel_at(beat: int) -> Callable[[], None]:
    """A heartbeat that raises at its `beat`th call, and must not be called after that."""
    beats: list[int] = []

    def heartbeat() -> None:
        beats.append(len(beats) + 1)
        assert len(beats) <= beat
        if len(beats) == beat:
            raise Cancelled

    return heartbeat


def left_over(root: Path) -> list[str]:
    """What lies there beside the lock."""
    return sorted(file.name for file in root.iterdir() if file.suffix != ".lock")


def test_a_file_arrives_whole_under_its_name(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY), BODY, len(BODY))
    assert not is_complete(source, tmp_path)
    path = fetch_model(source, tmp_path)
    assert path == tmp_path / "model.pt" and path.read_bytes() == BODY
    assert left_over(tmp_path) == ["model.pt"]
    assert is_complete(source, tmp_path)


def test_what_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY))
    fetch_model(source, tmp_path)
    fetch_model(source, tmp_path)
    assert len(server.requests) == 1


def test_progress_rises_to_the_whole(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source = model(server.serve("/m.pt", BODY, pause=0.03))
    download(source, tmp_path, lambda done, total: told.append((done, total)), HASTY)
    assert told[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 2 and all(done <= total for done, total in told)


def test_the_files_of_a_folder_add_up_to_one_progress(server: FileServer, tmp_path: Path) -> None:
    files = {"config.json": b'{"a": 1}', "sub/vocab.txt": b"a\nb\n", "model.safetensors": BODY}
    source = Source(
        "folder",
        tuple(RemoteFile(server.serve(f"/{name}", body), name) for name, body in files.items()),
        "MIT",
        "https://example.org",
    )
    told: list[tuple[int, int]] = []
    path = download(source, tmp_path, lambda *both: told.append(both), HASTY)
    assert {name: (path / name).read_bytes() for name in files} == files
    assert told[-1] == (sum(map(len, files.values())),) * 2
    (path / "sub/vocab.txt").unlink()
    assert not is_complete(source, tmp_path)
    fetch_model(source, tmp_path)
    assert [asked for asked, _ in server.requests[3:]] == ["/sub/vocab.txt"]


@pytest.mark.parametrize("pinned", [None, BODY])
def test_a_cut_download_goes_on_where_it_was_cut(
    server: FileServer, tmp_path: Path, pinned: bytes | None
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[200_000, 100_000]), pinned)
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert server.ranges() == ["", "bytes=200000-", "bytes=300000-"]
    assert server.requests[1][1]["if-range"] == '"first"'


def test_many_cuts_are_fine_while_something_new_comes(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[100_000] * 6))
    assert fetch_model(source, tmp_path).read_bytes() == BODY


def test_a_server_that_keeps_cutting_is_given_up_and_what_came_is_kept(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[200_000, 0, 0, 0]))
    with pytest.raises(RewardError, match=r"200 kB of 700 kB are kept in model.pt.part"):
        fetch_model(source, tmp_path)
    assert (tmp_path / "model.pt.part").stat().st_size == 200_000
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert server.ranges()[-1] == "bytes=200000-"


def test_a_stall_is_waited_out_and_resumed(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, stalls=[300_000]), BODY)
    assert fetch_model(source, tmp_path, IMPATIENT).read_bytes() == BODY
    assert server.ranges()[:2] == ["", "bytes=300000-"]


def test_a_server_that_only_stalls_is_named(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, stalls=[0] * 3))
    with pytest.raises(RewardError, match="nothing came.*at the last of 3 tries") as caught:
        fetch_model(source, tmp_path, IMPATIENT)
    for word in (server.url("/m.pt"), "https://example.org/model", str(tmp_path), "model.pt"):
        assert word in str(caught.value)
    assert left_over(tmp_path) == []


def test_a_server_without_ranges_sends_everything_again(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[200_000], ranges=False), BODY)
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize("seen", ['"second"', ""])
def test_a_file_that_changed_in_between_is_fetched_from_its_start(
    server: FileServer, tmp_path: Path, seen: str
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[300_000] + [0] * 9))
    with pytest.raises(RewardError):
        fetch_model(source, tmp_path)
    server.serve("/m.pt", OTHER, etag=seen)
    assert fetch_model(source, tmp_path).read_bytes() == OTHER


def test_a_server_that_tells_nothing_of_the_file_gets_no_range(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, etag="", cuts=[300_000]))
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert server.ranges() == ["", ""]


def test_a_weak_etag_is_not_trusted_for_resuming(server: FileServer, tmp_path: Path) -> None:
    date = "Tue, 15 Nov 1994 12:45:26 GMT"
    url = server.serve("/m.pt", BODY, etag='W/"1"', modified=date, cuts=[300_000])
    assert fetch_model(model(url), tmp_path).read_bytes() == BODY
    assert server.requests[1][1]["if-range"] == date


def test_a_part_longer_than_the_file_is_started_anew(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[300_000] + [0] * 9))
    with pytest.raises(RewardError):
        fetch_model(source, tmp_path)
    server.serve("/m.pt", BODY[:1000])
    assert fetch_model(source, tmp_path).read_bytes() == BODY[:1000]


def test_what_was_kept_and_is_wrong_is_fetched_from_its_start(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[300_000] + [0] * 9), BODY)
    with pytest.raises(RewardError):
        fetch_model(source, tmp_path)
    (tmp_path / "model.pt.part").write_bytes(OTHER[:300_000])
    server.serve("/m.pt", BODY)
    assert fetch_model(source, tmp_path).read_bytes() == BODY


def test_a_file_that_changes_while_it_comes_is_fetched_from_its_start(
    server: FileServer, tmp_path: Path
) -> None:
    def report(done: int, total: int) -> None:
        if done and not server.files["/m.pt"].cuts:
            server.serve("/m.pt", BODY, etag="")

    source = model(server.serve("/m.pt", OTHER, etag="", cuts=[300_000]), BODY)
    assert download(source, tmp_path, report, HASTY).read_bytes() == BODY
    assert server.ranges() == ["", "bytes=300000-", ""]


def test_a_part_that_was_whole_is_checked_and_named_without_a_request(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[300_000] + [0] * 9), BODY)
    with pytest.raises(RewardError):
        fetch_model(source, tmp_path)
    (tmp_path / "model.pt.part").write_bytes(BODY)
    asked = len(server.requests)
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert len(server.requests) == asked


def test_a_wrong_checksum_removes_the_file(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", OTHER), BODY)
    with pytest.raises(RewardError, match="wrong checksum and was removed.*by hand"):
        fetch_model(source, tmp_path)
    assert left_over(tmp_path) == []


def test_a_file_of_another_length_than_pinned_is_refused_before_it_comes(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY[:-1]), BODY, len(BODY))
    with pytest.raises(RewardError, match="700000 bytes and not 700001"):
        fetch_model(source, tmp_path)
    assert left_over(tmp_path) == []


def test_the_hubs_own_checksum_is_used_where_none_is_pinned(
    server: FileServer, tmp_path: Path
) -> None:
    server.serve("/cdn", OTHER)
    linked = {"X-Linked-ETag": f'"{sha256(BODY)}"'}
    source = model(server.serve("/m.pt", b"", location=server.url("/cdn"), headers=linked))
    with pytest.raises(RewardError, match="wrong checksum"):
        fetch_model(source, tmp_path)
    server.serve("/cdn", BODY)
    assert fetch_model(source, tmp_path).read_bytes() == BODY


def test_a_body_shorter_than_announced_is_never_named(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, length=len(BODY) + 5))
    with pytest.raises(RewardError, match=r"cut.*at the last of 3 tries"):
        fetch_model(source, tmp_path)
    assert not (tmp_path / "model.pt").exists()


def test_a_connection_that_ends_early_without_an_error_is_noticed(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_body", lambda raw: iter([raw.read(1000)]))
    with pytest.raises(RewardError, match="the connection was cut"):
        fetch_model(model(server.serve("/m.pt", BODY, ranges=False)), tmp_path)
    assert not (tmp_path / "model.pt").exists()


def test_a_length_that_is_not_told_is_fine(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, length=-1))
    assert fetch_model(source, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_a_model(server: FileServer, tmp_path: Path, content_type: str) -> None:
    page = b"\n<!DOCTYPE html><html>Sign in</html>"
    source = model(server.serve("/m.pt", page, content_type=content_type))
    with pytest.raises(RewardError, match="a web page"):
        fetch_model(source, tmp_path)
    assert left_over(tmp_path) == []


def test_a_web_page_in_between_does_not_cost_what_was_kept(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, cuts=[300_000] + [0] * 9))
    with pytest.raises(RewardError):
        fetch_model(source, tmp_path)
    server.serve("/m.pt", b"<html>hotel network</html>", content_type="text/html", ranges=False)
    with pytest.raises(RewardError, match="a web page"):
        fetch_model(source, tmp_path)
    server.serve("/m.pt", BODY)
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert server.ranges()[-1] == "bytes=300000-"


def test_a_git_lfs_pointer_is_not_a_model(server: FileServer, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    with pytest.raises(RewardError, match="git-lfs pointer"):
        fetch_model(model(server.serve("/m.pt", pointer)), tmp_path)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "licence to accept"), (403, "licence to accept"), (404, "no longer there")],
)
def test_a_refusal_is_explained_and_not_repeated(
    server: FileServer, tmp_path: Path, status: int, words: str
) -> None:
    source = model(server.serve("/m.pt", BODY, statuses=[status] * 9))
    with pytest.raises(RewardError, match=f"{status}.*{words}.*https://example.org/model"):
        fetch_model(source, tmp_path)
    assert len(server.requests) == 1 and left_over(tmp_path) == []


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, statuses=[503, 429]))
    assert fetch_model(source, tmp_path).read_bytes() == BODY


def test_a_server_that_stays_broken_is_named(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, statuses=[500] * 9))
    with pytest.raises(RewardError, match="answered 500, at the last of 3 tries"):
        fetch_model(source, tmp_path)
    assert len(server.requests) == 3


def test_no_network_is_said_with_the_address_and_the_folder(tmp_path: Path) -> None:
    with FileServer() as gone:
        url = gone.url("/m.pt")
    with pytest.raises(RewardError, match="no connection") as caught:
        fetch_model(model(url), tmp_path)
    assert url in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_connection_that_is_not_secure_is_not_used(server: FileServer, tmp_path: Path) -> None:
    server.serve("/m.pt", BODY)
    url = server.url("/m.pt").replace("http://", "https://")
    with pytest.raises(RewardError, match="secure connection failed"):
        fetch_model(model(url), tmp_path)


def test_a_redirect_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    asked: list[str] = []

    def get(self: requests.Session, url: str, **_: object) -> requests.Response:
        asked.append(url)
        response = requests.Response()
        response.status_code = 302
        response.headers["Location"] = "http://127.0.0.1/m.pt"
        response.raw = SimpleNamespace(close=lambda: None, release_conn=lambda: None)
        return response

    monkeypatch.setattr(requests.Session, "get", get)
    with stream.Stream("https://127.0.0.1/m.pt", {}, HASTY) as opened:
        with pytest.raises(stream.Refused, match="unprotected address"):
            opened.answer()
    assert asked == ["https://127.0.0.1/m.pt"]


@pytest.mark.parametrize("location", ["http://[::", "http://a..b/model.pt"])
def test_a_redirect_to_what_is_no_address_is_refused(
    server: FileServer, tmp_path: Path, location: str
) -> None:
    url = server.serve("/model.pt", b"", location=location)
    with pytest.raises(RewardError, match="the address is not valid.*get model.pt by hand"):
        fetch_model(model(url), tmp_path)
    assert len(server.requests) == 1


def test_a_model_below_a_folder_of_its_own_maker_arrives_there(
    server: FileServer, tmp_path: Path
) -> None:
    file = RemoteFile(server.serve("/model.pt", BODY))
    source = Source("maker/model.pt", (file,), "MIT", "https://example.org/model")
    assert fetch_model(source, tmp_path) == tmp_path / "maker" / "model.pt"
    assert (tmp_path / "maker" / "model.pt").read_bytes() == BODY


def test_redirects_in_circles_end(server: FileServer, tmp_path: Path) -> None:
    url = server.serve("/m.pt", b"", location=server.url("/m.pt"))
    with pytest.raises(RewardError, match="in circles"):
        fetch_model(model(url), tmp_path)


def test_no_credentials_are_sent(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    fetch_model(model(server.serve("/m.pt", BODY)), tmp_path / "models")
    assert "authorization" not in server.requests[0][1]


def test_a_mirror_of_the_hub_is_asked_instead(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve("/someone/model/resolve/main/m.pt", BODY)
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    source = model("https://huggingface.co/someone/model/resolve/main/m.pt", BODY)
    assert fetch_model(source, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("how", "kept"),
    [({"stalls": [100_000]}, True), ({"stalls": [0]}, False), ({"pause": 0.3}, True)],
)
def test_a_cancel_acts_at_the_next_heartbeat_and_the_next_run_goes_on(
    server: FileServer, tmp_path: Path, how: dict[str, Any], kept: bool
) -> None:
    source = model(server.serve("/m.pt", BODY, **copy.deepcopy(how)), BODY)
    with beating(cancel_at(8)), pytest.raises(Cancelled):
        fetch_model(source, tmp_path, Patience())
    kept_file = tmp_path / "model.pt.part"
    size = kept_file.stat().st_size if kept_file.exists() else 0
    assert bool(size) == kept
    server.files["/m.pt"].pause = 0.0
    assert fetch_model(source, tmp_path).read_bytes() == BODY
    assert server.ranges()[-1] == (f"bytes={size}-" if size else "")


def test_a_cancel_acts_while_waiting_to_try_again(server: FileServer, tmp_path: Path) -> None:
    source = model(server.serve("/m.pt", BODY, statuses=[503] * 9))
    with beating(cancel_at(8)), pytest.raises(Cancelled):
        fetch_model(source, tmp_path, Patience(pause=30.0))
    assert len(server.requests) == 1


def test_a_cancel_acts_while_another_download_of_the_model_is_waited_for(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".model.pt.lock"):
        with beating(cancel_at(3)), pytest.raises(Cancelled):
            fetch_model(model("http://127.0.0.1:9/m.pt"), tmp_path)


def test_what_the_progress_report_raises_ends_the_download(
    server: FileServer, tmp_path: Path
) -> None:
    def report(done: int, total: int) -> None:
        if done:
            raise Cancelled

    source = model(server.serve("/m.pt", BODY, pause=0.05))
    with pytest.raises(Cancelled):
        download(source, tmp_path, report, HASTY)
    assert not (tmp_path / "model.pt").exists()


def test_a_stalled_server_does_not_stop_the_heartbeats(server: FileServer, tmp_path: Path) -> None:
    beats: list[float] = []
    source = model(server.serve("/m.pt", BODY, stalls=[0] * 9))
    patience = Patience(connect=1.0, stall=1.0, retries=0)
    with beating(lambda: beats.append(time.monotonic())), pytest.raises(RewardError):
        download(source, tmp_path, quiet, patience)
    assert len(beats) >= 5


def test_a_disk_without_room_is_said_before_anything_comes(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=600_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RewardError, match=r"is full.*700 kB.*Make room \(100 kB more\)"):
        fetch_model(model(server.serve("/m.pt", BODY)), tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_loses_the_part_and_says_so(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    whole = part.Part.write

    def write(self: part.Part, chunk: bytes) -> None:
        if self.size > 300_000:
            raise OSError(number, "No space left on device")
        whole(self, chunk)

    monkeypatch.setattr(part.Part, "write", write)
    with pytest.raises(RewardError, match="is full.*was removed.*extra_model_paths.yaml"):
        fetch_model(model(server.serve("/m.pt", BODY)), tmp_path)
    assert left_over(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(server: FileServer, tmp_path: Path) -> None:
    blocked = tmp_path / "models"
    blocked.write_text("a file", encoding="utf-8")
    with pytest.raises(RewardError, match="cannot be written to.*permissions"):
        fetch_model(model(server.serve("/m.pt", BODY)), blocked)


def test_two_downloads_of_one_model_do_not_get_in_each_others_way(
    server: FileServer, tmp_path: Path
) -> None:
    source = model(server.serve("/m.pt", BODY, pause=0.02), BODY)
    failed: list[Exception] = []

    def run() -> None:
        try:
            fetch_model(source, tmp_path, Patience())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not failed
    assert (tmp_path / "model.pt").read_bytes() == BODY
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "name", ["../evil.pt", "/etc/evil", "a/../../evil", "a\\evil", "C:evil", "", ".", "a//b", "a "]
)
def test_names_that_leave_the_models_folder_are_refused(
    server: FileServer, tmp_path: Path, name: str
) -> None:
    url = server.serve("/m.pt", BODY)
    files = (RemoteFile(url, "good.pt"), RemoteFile(url, name))
    for source in (
        Source("folder", files, "MIT", "https://example.org"),
        Source(name, (RemoteFile(url),), "MIT", "https://example.org"),
    ):
        with pytest.raises(RewardError):
            fetch_model(source, tmp_path / "models")
    assert server.requests == [] and not (tmp_path / "models").exists()


def test_the_servers_own_file_name_is_not_used(server: FileServer, tmp_path: Path) -> None:
    headers = {"Content-Disposition": 'attachment; filename="../../evil.pt"'}
    fetch_model(model(server.serve("/m.pt", BODY, headers=headers)), tmp_path)
    assert left_over(tmp_path) == ["model.pt"]


def test_a_folder_nothing_came_into_is_not_left_behind(server: FileServer, tmp_path: Path) -> None:
    files = (RemoteFile(server.url("/gone"), "config.json"),)
    with pytest.raises(RewardError, match="404"):
        fetch_model(Source("folder", files, "MIT", "https://example.org"), tmp_path)
    assert left_over(tmp_path) == []


def test_the_answers_worth_another_try_are_not_refusals() -> None:
    assert not set(fetch._TRY_AGAIN) & set(fetch._MEANING)
