"""The error tree: texts, codes and the round trip through a status."""

import pytest

from orlop.base import errdefs


@pytest.mark.parametrize("cls", errdefs.CLASS_OF_CODE.values())
def test_status_round_trip_keeps_class_and_message(cls):
    error = cls('container "web"')
    again = errdefs.from_status(*errdefs.to_status(error))
    assert isinstance(again, cls)
    assert str(again) == str(error)


def test_text_names_the_object_and_ends_in_the_class_word():
    assert str(errdefs.NotFoundError('container "web"')) == 'container "web": not found'
    assert str(errdefs.NotFoundError("already says: not found")) == "already says: not found"


def test_a_foreign_message_is_kept_as_it_is():
    error = errdefs.from_status(5, "no such thing")
    assert isinstance(error, errdefs.NotFoundError)
    assert str(error) == "no such thing"
    assert isinstance(errdefs.from_status(99, "what"), errdefs.UnknownError)


def test_foreign_exceptions_are_internal_and_timeouts_are_deadlines():
    assert errdefs.to_status(ValueError("x")) == (13, "ValueError: x")
    assert errdefs.to_status(TimeoutError())[0] == 4


def test_a_foreign_message_may_end_in_the_class_word_in_another_way():
    assert str(errdefs.from_status(5, "task one not found")) == "task one not found"
    assert str(errdefs.from_status(5, "not found")) == "not found"
