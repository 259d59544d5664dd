"""Imports without garbage collection: what is made within is set aside, and collection goes on as it was."""

import gc

import pytest

from fusechat.models.process_memory import without_garbage_collection


def test_what_is_imported_is_set_aside_and_collection_goes_on() -> None:
    before = gc.get_freeze_count()
    with without_garbage_collection():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(made)
    assert not any(entry is made for entry in gc.get_objects())


def test_collection_goes_on_after_an_import_that_fails_and_stays_off_where_it_was() -> None:
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with without_garbage_collection():
        pass
    off = not gc.isenabled()
    gc.enable()
    assert off
