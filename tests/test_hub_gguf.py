"""GGUF files of Hugging Face: which files are downloaded, and which are found in the local cache."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from test_hub import COMMIT, NAME, listing

from sllm_jax.common.errors import SllmError
from sllm_jax.loading import hub

QUANTIZED = ["model.Q4_0.gguf", "model.Q8_0.gguf", "BF16/model-00001-of-00002.gguf", "BF16/model-00002-of-00002.gguf"]


@pytest.fixture
def downloaded(tmp_path):
    """Where the hub puts what is downloaded."""
    (tmp_path / "downloaded").mkdir()
    return tmp_path / "downloaded"


@pytest.fixture
def asked(downloaded, monkeypatch):
    """Which files of a repository with these GGUF files were downloaded, as (name, revision, files)."""
    found = []

    def snapshot_download(name, **options):
        found.append((name, options["revision"], options["allow_patterns"]))
        for file in options["allow_patterns"]:
            (downloaded / file).parent.mkdir(exist_ok=True)
            (downloaded / file).touch()
        return str(downloaded)

    monkeypatch.setattr(
        huggingface_hub, "model_info", listing(["README.md", "config.json", *QUANTIZED, "BF16/mmproj.gguf"])
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        (f"{NAME}/model.Q8_0.gguf", None),
        (f"https://huggingface.co/{NAME}/blob/v1/model.Q8_0.gguf", "v1"),
        (f"https://huggingface.co/{NAME}/resolve/v1/model.Q8_0.gguf?download=true", "v1"),
        (f"hf://{NAME}/model.Q8_0.gguf", None),
        (f"hf://{NAME}@v1/model.Q8_0.gguf", "v1"),
    ],
)
def test_one_gguf_file_is_downloaded(asked, downloaded, name, revision):
    assert hub.resolve(name) == downloaded / "model.Q8_0.gguf"
    assert asked == [(NAME, revision, ["model.Q8_0.gguf"])]


def test_all_parts_of_a_gguf_model_are_downloaded(asked, downloaded):
    assert hub.resolve(f"{NAME}/BF16/model-00001-of-00002.gguf", "v2") == downloaded / QUANTIZED[2]
    assert asked == [(NAME, "v2", QUANTIZED[2:])]


def test_several_gguf_models_are_listed(asked):
    with pytest.raises(SllmError, match=r"it has several GGUF files; give one as org/model/FILE: BF16/model-00001-of-"):
        hub.resolve(NAME)


def test_a_gguf_file_that_is_not_there(asked):
    with pytest.raises(
        SllmError, match=r"it has no model.Q2_K.gguf; its GGUF files: BF16/model-00001-of-00002.gguf, mo"
    ):
        hub.resolve(f"{NAME}/model.Q2_K.gguf")


def test_the_only_gguf_model_of_a_repository(downloaded, monkeypatch):
    (downloaded / "model.Q4_0.gguf").touch()
    monkeypatch.setattr(huggingface_hub, "model_info", listing(["README.md", "model.Q4_0.gguf"]))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(downloaded))
    assert hub.resolve(NAME) == downloaded / "model.Q4_0.gguf"


def test_a_cached_gguf_file_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / f"models--{NAME.replace('/', '--')}"
    file = cached / "snapshots" / COMMIT / "gguf" / "model.gguf"
    for path, text in ((cached / "refs" / "main", COMMIT), (file, ""), (file.parents[1] / "config.json", "{}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert hub.resolve(f"{NAME}/gguf/model.gguf") == file
    with pytest.raises(SllmError, match="cannot be fetched"):
        hub.resolve(f"{NAME}/gguf/other.gguf")


@pytest.mark.parametrize("name", ["no.gguf", "./no.gguf", "/no/where/no.gguf"])
def test_a_gguf_file_that_does_not_exist(name):
    with pytest.raises(SllmError, match=f"file {name} not found"):
        hub.resolve(name)
