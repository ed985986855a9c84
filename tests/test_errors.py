"""A misspelled name is answered with the nearest one and with the list."""

import pytest

from raydd.errors import Unfinished, UserError, choose


def test_a_known_name_passes():
    assert choose("method", "rded", ["random", "rded"]) == "rded"


def test_a_near_name_is_suggested():
    message = "unknown method 'redd': did you mean 'rded'? choose one of random, rded"
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        choose("method", "redd", iter(["random", "rded"]))


def test_no_name_is_near():
    with pytest.raises(UserError, match=r"^unknown method 'xyz': choose one of random, rded$"):
        choose("method", "xyz", ["random", "rded"])


def test_unfinished_work_is_for_the_user_to_continue():
    assert issubclass(Unfinished, UserError) and issubclass(UserError, ValueError)
