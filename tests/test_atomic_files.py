"""Files are whole or not there."""

import errno
import json

import pytest

from mmstp.atomic_files import whole_file, write_json, write_text


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a.json'
    write_json(path, {'kept': 1})
    with pytest.raises(TypeError):
        write_json(path, {'bad': object()})
    with pytest.raises(OSError, match=r"full: '.*a\.json'"), whole_file(path) as file:
        file.write(b'half of it')
        raise OSError(errno.ENOSPC, 'disk full')
    assert json.loads(path.read_text()) == {'kept': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_is_made(tmp_path):
    write_text(tmp_path / 'new' / 'a.txt', 'é')
    assert (tmp_path / 'new' / 'a.txt').read_bytes() == 'é'.encode()
