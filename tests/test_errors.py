"""A misspelled name is answered with the nearest one and with the list; messages hold no secrets."""

import pickle

import pytest

from raydd.errors import Unfinished, UserError, choose, redact


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


SECRETS = [
    ("https://me:pa55@host/x", "https://me:***@host/x"),
    ("https://me:p@a:55@host/x", "https://me:***@host/x"),
    ("https://gh0t0ken@host/x", "https://***@host/x"),
    ("s3://KEY:SE+CRET@bucket/x", "s3://KEY:***@bucket/x"),
    ("zip::sftp://me:pa55@host/a.zip", "zip::sftp://me:***@host/a.zip"),
    ("https://a.net/c?sv=1&sig=ab%2Bc&se=2", "https://a.net/c?sv=1&sig=***&se=2"),
    (
        "https://b.net/o?X-Amz-Credential=AK&X-Amz-Signature=ff",
        "https://b.net/o?X-Amz-Credential=***&X-Amz-Signature=***",
    ),
    ("see 'https://me:pa55@host', or s3://bucket/x", "see 'https://me:***@host', or s3://bucket/x"),
]


@pytest.mark.parametrize(("text", "wanted"), SECRETS, ids=[wanted for _, wanted in SECRETS])
def test_secrets_are_left_out_of_messages(text, wanted):
    assert redact(text) == wanted
    assert str(UserError(f"cannot reach {text} (timeout): check it")) == f"cannot reach {wanted} (timeout): check it"
    assert str(pickle.loads(pickle.dumps(Unfinished(text)))) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b:c.png",
        "abfs://container@account/x",
        "hdfs://me@host:9000/x",
        "github://org:repo@main/x",
        "https://host:8080/x?size=3#a@b",
        "me:pa55@host",
        "/data/a@b/key=1",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text
