"""Prompts from files, lists and scenes; every kind of bad row."""

import pytest

from goca.errors import ConfigError, DataError
from goca.generation.prompts import read_prompts


@pytest.fixture
def csv_file(tmp_path):
    def write(text):
        path = tmp_path / "prompts.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_csv_with_the_published_columns(csv_file):
    path = csv_file('image_id,text\n42,"A dog, on a mat"\nb 7, two cats \n')
    first, second = read_prompts(path)
    assert (first.image_id, first.text, first.seed) == ("42", "A dog, on a mat", 42)
    assert (second.image_id, second.text) == ("b 7", "two cats")


def test_columns_of_seeds_and_negative_prompts(csv_file):
    path = csv_file("image_id,text,seed,negative_prompt\n1,dog,9,cat\n2,cow,,\n")
    first, second = read_prompts(path, seed=3, negative="fog")
    assert (first.seed, first.negative) == (9, "cat") and (second.seed, second.negative) == (3, "fog")


def test_text_file_list_one_prompt_and_scenes(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a dog\n\na cat\n")
    assert [(r.image_id, r.text) for r in read_prompts(str(path))] == [("1", "a dog"), ("3", "a cat")]
    assert [r.image_id for r in read_prompts([f"word {i}" for i in range(11)])][-1] == "10"
    assert read_prompts("a red circle")[0].text == "a red circle"
    assert read_prompts("scenes", limit=2)[1].image_id == "1000001"
    with pytest.raises(ConfigError, match="limit"):
        read_prompts("scenes")


def test_seeds_by_id_depend_on_seed_and_id_alone():
    once, again = read_prompts(["a", "b"], seeds="by_id"), read_prompts(["b", "a"], seeds="by_id")
    assert [r.seed for r in once] == [r.seed for r in again] and once[0].seed != once[1].seed
    assert read_prompts(["a"], seed=1, seeds="by_id")[0].seed != once[0].seed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,text\n1,\n2,dog\n3,   \n", "2 rows without text: '1', '3'"),
        ("image_id,text\n1,dog\n1,cat\n", "occur more than once: '1'"),
        ("image_id,text\n../x,dog\n", "no file names.*'../x'"),
        ("image_id,text\n" + "x" * 300 + ",dog\n", "no file names"),
        ("image_id,text\n.hidden,dog\n", "no file names"),
        ("image_id,text\n,dog\n", "no file names"),
        ("id,caption\n1,dog\n", "lacks the column image_id and text; it has id, caption"),
        ("image_id,text\n", "no prompt"),
        ("image_id,text,seed\n1,dog,x\n", "seed of 1 is not a whole number"),
        ("image_id,text,seed\n1,dog,-1\n", "seed of 1 is not a whole number"),
        ("image_id,text,seed\n1,dog,18446744073709551616\n", "from 0 to 18446744073709551615"),
    ],
)
def test_bad_rows_are_named(csv_file, text, message):
    with pytest.raises(DataError, match=message):
        read_prompts(csv_file(text))


def test_a_list_may_hold_numbers():
    assert [request.text for request in read_prompts([2001, "a dog"])] == ["2001", "a dog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": None}, r"FILE\.csv.*got None"),
        ({"source": {"a": "dog"}}, r"FILE\.csv"),
        ({"source": ["a dog", None]}, r"FILE\.csv"),
        ({"limit": 0}, "limit.*from 1"),
        ({"limit": "all"}, "limit.*from 1"),
        ({"seed": -1}, "seed: must be"),
        ({"seed": 2**64}, "seed: must be"),
        ({"seeds": "random"}, "same and by_id"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(**{"source": ["a dog"], **arguments})


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"absent\.csv"):
        read_prompts(str(tmp_path / "absent.csv"))
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_prompts(str(tmp_path / "latin.txt"))
