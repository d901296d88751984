"""A file comes whole from its address, or goes on where it broke off."""

import pytest
from support.hub import Hub

from experiments.fetch import download

DATA = bytes(range(256)) * 100


@pytest.fixture
def hub():
    with Hub() as hub:
        hub.files["list.tsv"] = DATA
        yield hub


def fetch(hub, path):
    url = f"{hub.endpoint}/files/list.tsv"
    download.download(url, path, download.size_bytes(url))


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(hub, tmp_path):
    hub.cut_after["list.tsv"] = [3000, 4000]
    fetch(hub, tmp_path / "new" / "list.tsv")
    assert (tmp_path / "new" / "list.tsv").read_bytes() == DATA
    assert [answer[1:] for answer in hub.served] == [(0, 3000), (3000, 4000), (7000, len(DATA) - 7000)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["list.tsv"]


def test_when_nothing_more_comes_the_next_call_goes_on_with_what_came(hub, tmp_path):
    hub.cut_after["list.tsv"] = [3000, 0]
    with pytest.raises(download.ERRORS, match="3,000 of 25,600 bytes came"):
        fetch(hub, tmp_path / "list.tsv")
    assert not (tmp_path / "list.tsv").exists()
    hub.served.clear()
    fetch(hub, tmp_path / "list.tsv")
    assert (tmp_path / "list.tsv").read_bytes() == DATA
    assert [answer.first for answer in hub.served] == [3000]


def test_what_is_left_of_a_longer_file_is_thrown_away(hub, tmp_path):
    (tmp_path / ".list.tsv.part").write_bytes(b"x" * (len(DATA) + 1))
    fetch(hub, tmp_path / "list.tsv")
    assert (tmp_path / "list.tsv").read_bytes() == DATA


def test_a_server_that_always_sends_the_whole_is_taken_from_the_beginning(hub, tmp_path, monkeypatch):
    request = download._open
    monkeypatch.setattr(download, "_open", lambda url, method, first_byte=0: request(url, method))
    (tmp_path / ".list.tsv.part").write_bytes(b"x" * 500)
    fetch(hub, tmp_path / "list.tsv")
    assert (tmp_path / "list.tsv").read_bytes() == DATA


def test_a_file_that_is_not_there_is_an_error_of_the_server(hub, tmp_path):
    with pytest.raises(download.ERRORS, match="404"):
        download.size_bytes(f"{hub.endpoint}/files/other.tsv")
