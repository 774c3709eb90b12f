"""Hugging Face names without a network: a fake hub, and a local cache in the hub's layout."""

import errno
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import checkpoints
import huggingface_hub
import pytest
from checkpoints import assert_same
from huggingface_hub import constants, errors

from sllm_jax.common.errors import SllmError
from sllm_jax.loading import hub
from sllm_jax.loading import pretrained as loading

NAME, COMMIT = "org/tiny-llama", "0123456789abcdef0123456789abcdef01234567"
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
REST = ["README.md", ".gitattributes", "modeling_llama.py", "onnx/config.json", "onnx/tokenizer.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty local cache, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def cached(cache):
    """The cache with a tiny model in it; returns the model's folder."""
    model = cache / f"models--{NAME.replace('/', '--')}"
    folder = model / "snapshots" / COMMIT
    checkpoints.save_llama(folder)
    for ref in ("main", "v1"):
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / ref).write_text(COMMIT)
    return folder


def fail_with(monkeypatch, error):
    """Let the hub answer every question with an error."""

    def answer(*_, local_files_only=False, **options):
        if local_files_only:
            return download(*_, local_files_only=True, **options)
        raise error

    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "model_info", answer)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)


def listing(files):
    """The hub's answer about a repository with these files."""
    siblings = [SimpleNamespace(rfilename=name) for name in files]
    return lambda name, revision, timeout: SimpleNamespace(siblings=siblings)


def http_error(kind):
    """An error of the hub, whose constructor takes a response of the release's HTTP library."""
    error = kind.__new__(kind)
    error.args = ("Server says no",)
    return error


# what is downloaded


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (
            [
                *(
                    "model.safetensors.index.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                ),
                *("consolidated.safetensors", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"),
            ],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.fp16.bin"],
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
        ),
    ],
)
def test_weights_of_one_format_are_chosen(files, weights):
    beside = ["config.json", "generation_config.json", *TOKENIZER_FILES]
    chosen = hub.model_files([*REST, *beside, *files])
    assert sorted(chosen) == sorted([*weights, *beside])
    assert sorted(hub.tokenizer_files([*REST, *beside, *files])) == sorted(["config.json", *TOKENIZER_FILES])


def test_a_name_is_downloaded(folder_of_hub, monkeypatch):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"], sorted(options["allow_patterns"])))
        return str(folder_of_hub)

    files = ["config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub, "model_info", listing(files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.resolve(NAME, "v2") == folder_of_hub
    assert hub.resolve("gpt2", only_tokenizer=True) == folder_of_hub
    assert asked == [
        (NAME, "v2", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]),
        ("gpt2", None, ["config.json", "tokenizer.json"]),
    ]


@pytest.fixture
def folder_of_hub(tmp_path):
    (tmp_path / "downloaded").mkdir()
    return tmp_path / "downloaded"


@pytest.mark.parametrize("files", [["config.json", "model.h5"], ["model.safetensors"], []])
def test_a_repository_without_a_model(files, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "model_info", listing(files))
    with pytest.raises(SllmError, match=r"^org/tiny-llama on Hugging Face cannot be loaded: expected config\.json"):
        hub.resolve(NAME)


# folders


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve("org/model").resolve() == tmp_path / "org" / "model"
    assert hub.resolve("~/org/model") == tmp_path / "org" / "model"


@pytest.mark.parametrize(
    "path", ["./model", "/no/where", "~/no-model", "~nobody-here/x", "a/b/c", "../x", "", "models\\llama"]
)
def test_a_path_that_is_no_folder(path):
    with pytest.raises(SllmError, match=r"^folder .*not found"):
        hub.resolve(path)


# the local cache


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_a_cached_name_loads_offline(cached, revision):
    model, tokenizer = loading.load(NAME, revision=revision)
    assert_same(model.params, checkpoints.load(cached))
    assert tokenizer is None


def test_a_cached_name_loads_in_a_process_that_is_offline(cache, cached):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    program = f"from sllm_jax.loading.hub import resolve; print(resolve({NAME!r}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(cached)


@pytest.mark.parametrize(
    "error",
    [
        http_error(errors.GatedRepoError),
        http_error(errors.RepositoryNotFoundError),
        http_error(errors.HfHubHTTPError),
        ConnectionError("no route"),
        Exception("an HTTP library of tomorrow"),
    ],
)
def test_a_cached_name_loads_when_the_hub_fails(cached, error, monkeypatch):
    fail_with(monkeypatch, error)
    assert hub.resolve(NAME) == cached


def test_a_cache_without_weights_does_not_do(cached):
    (cached / "model.safetensors").unlink()
    with pytest.raises(SllmError, match=r"is not in the local cache"):
        hub.resolve(NAME)
    assert hub.resolve(NAME, only_tokenizer=True) == cached


def test_a_cached_name_with_a_shard_missing(cached):
    shutil.rmtree(cached)
    checkpoints.save_llama(cached, max_shard_size="20KB")
    sorted(cached.glob("*.safetensors"))[0].unlink()
    with pytest.raises(SllmError, match=r"names missing files: model-00001-of-.*; download the checkpoint again"):
        loading.load(NAME)


# what cannot be had


def refused(monkeypatch, error, name=NAME, revision=None):
    fail_with(monkeypatch, error)
    with pytest.raises(SllmError) as refusal:
        hub.resolve(name, revision)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_offline(cache):
    with pytest.raises(SllmError) as refusal:
        hub.resolve(NAME)
    assert str(refusal.value) == (
        f"org/tiny-llama is not in the local cache {cache} and cannot be fetched (HF_HUB_OFFLINE is set); "
        "fetch it once while online, or give a folder"
    )


def test_no_connection(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    message = refused(monkeypatch, ConnectionError("no route\nto host"))
    assert message == (
        f"org/tiny-llama is not in the local cache {cache} and cannot be fetched (ConnectionError: no route); "
        "fetch it once while online, or give a folder"
    )


def test_gated(monkeypatch):
    message = refused(monkeypatch, http_error(errors.GatedRepoError))
    assert message == (
        "org/tiny-llama is gated: accept its licence at https://huggingface.co/org/tiny-llama, then run `hf auth login`"
    )


def test_unknown(monkeypatch):
    message = refused(monkeypatch, http_error(errors.RepositoryNotFoundError))
    assert message == (
        "org/tiny-llama is neither a folder nor a Hugging Face model (for a private one: `hf auth login`)"
    )


def test_unknown_revision(monkeypatch):
    message = refused(monkeypatch, http_error(errors.RevisionNotFoundError), revision="v9")
    assert message == "org/tiny-llama has no revision 'v9' on Hugging Face"


@pytest.mark.parametrize("name", ["a b", "org/-model-", "what?"])
def test_not_a_name(name):
    with pytest.raises(SllmError, match=r"is neither a folder nor a Hugging Face name such as org/model$"):
        hub.resolve(name)


def test_a_full_disk_is_no_reason_to_use_half_a_download(monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(SllmError, match=r"org/tiny-llama cannot be stored in .*: No space left on device"):
        hub.resolve(NAME)


@pytest.mark.parametrize(
    "address",
    [
        f"https://huggingface.co/{NAME}",
        f"http://www.huggingface.co/{NAME}/",
        f"https://hf.co/{NAME}?library=transformers",
        f"huggingface.co/{NAME}",
        f"https://huggingface.co/{NAME}/tree/main",
        f"https://huggingface.co/{NAME}/tree/v1",
        f"https://huggingface.co/{NAME}/blob/main/config.json",
        f"https://huggingface.co/{NAME}/resolve/v1/model.safetensors#L3",
        f"hf://{NAME}",
        f"hf://{NAME}@v1",
        f"hf://{NAME}@main/config.json",
    ],
)
def test_the_address_of_a_model_is_its_name(cached, address):
    assert hub.resolve(address) == cached


@pytest.mark.parametrize(
    ("address", "name", "revision"),
    [
        ("https://huggingface.co/org/model/tree/refs/pr/3", "org/model", "refs/pr/3"),
        ("https://huggingface.co/org/model/blob/refs%2Fpr%2F3/config.json", "org/model", "refs/pr/3"),
        ("hf://org/model@refs/convert/parquet/config.json", "org/model", "refs/convert/parquet"),
        ("https://huggingface.co/org/model/commit/abc123", "org/model", "abc123"),
        ("HTTPS://HuggingFace.co/org/model", "org/model", None),
        ("https://huggingface.co/org/model.git", "org/model", None),
        ("hf://models/org/model", "org/model", None),
        ("https://huggingface.co/gpt2/tree/main", "gpt2", "main"),
    ],
)
def test_name_and_revision_of_an_address(monkeypatch, tmp_path, address, name, revision):
    asked = []

    def from_hub(*args):
        asked.append(args[:2])
        return tmp_path

    monkeypatch.setattr(hub, "_from_hub", from_hub)
    hub.resolve(address)
    assert asked == [(name, revision)]


@pytest.mark.parametrize(
    ("address", "revision", "message"),
    [
        ("https://example.com/org/model", None, "is not an address of Hugging Face"),
        ("ftp://huggingface.co/org/model", None, "is not an address of Hugging Face"),
        ("s3://bucket/model", None, "is not an address of Hugging Face"),
        ("https://huggingface.co/datasets/org/data", None, "is not the address of a model"),
        (f"hf://{NAME}@v1", "main", "names the revision v1, and --revision main; give one of them"),
        ("https://huggingface.co/org/other", None, "org/other is not in the local cache"),
    ],
)
def test_other_addresses_are_refused(cached, address, revision, message):
    with pytest.raises(SllmError, match=message):
        hub.resolve(address, revision)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://hf-mirror.com", f"https://hf-mirror.com/{NAME}"),
        ("https://hf-mirror.com", f"hf-mirror.com/{NAME}/tree/v1"),
        ("https://hf-mirror.com", f"https://huggingface.co/{NAME}/blob/main/config.json"),
        ("http://localhost:8080", f"http://localhost:8080/{NAME}?library=transformers"),
        ("https://company.example/api/hf.remote", f"https://Company.example/api/hf.remote/{NAME}/tree/main"),
    ],
)
def test_addresses_on_the_mirror_that_hf_endpoint_names(cached, monkeypatch, endpoint, address):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert hub.resolve(address) == cached


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("https://huggingface.co", f"https://hf-mirror.com/{NAME}"),
        ("https://hf-mirror.com", f"https://hf-mirror.com.example/{NAME}"),
        ("https://company.example/api/hf.remote", f"https://company.example/api/hf_remote/{NAME}"),
        ("", f"https://hf-mirror.com/{NAME}"),
    ],
)
def test_another_host_than_that_of_hf_endpoint_is_refused(cached, monkeypatch, endpoint, address):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(SllmError, match="is not an address of Hugging Face, or of the mirror that HF_ENDPOINT names"):
        hub.resolve(address)


def test_a_path_is_no_address_where_hf_endpoint_is_empty(cached, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "")
    assert hub.resolve(str(cached)) == cached


def test_a_folder_of_the_cache_stands_for_its_snapshot(cached):
    model = cached.parents[1]
    assert hub.resolve(model) == hub.resolve(str(model), "v1") == hub.resolve(model, COMMIT) == cached
    with pytest.raises(SllmError, match=f"has no snapshot of v9; give one of its snapshots .{COMMIT}."):
        hub.resolve(model, "v9")
    shutil.rmtree(model / "refs")
    assert hub.resolve(model) == cached, "the only one"
    (model / "snapshots" / "1").mkdir()
    with pytest.raises(SllmError, match="has no snapshot of main"):
        hub.resolve(model)


def test_a_repository_of_something_else_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "model_info", listing(["README.md", "model.onnx"]))
    with pytest.raises(SllmError, match=r"cannot be loaded: expected config.json .* but an ONNX model"):
        hub.resolve(NAME)


def test_additional_chat_templates_come_along():
    files = ["additional_chat_templates/tool_use.jinja", "additional_chat_templates/notes.txt", "tokenizer.json"]
    assert set(hub.tokenizer_files(files)) == {"config.json", "tokenizer.json", files[0]}


@pytest.mark.parametrize("name", ["a" * 5000, "org/" + "b" * 5000, "~/" + "c" * 300 + "/d", "a\0b", "/tmp/\ud800"])
def test_a_name_that_no_file_can_have_is_one_sentence(name):
    with pytest.raises(SllmError) as error:
        hub.resolve(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ["huggingface.co/{}?\n", "hf://{}@a/b\n", "https://hf.co/{}#\n\n"])
def test_no_address_takes_time_that_grows_with_its_square(address):
    program = (
        "import sys; from sllm_jax.loading import hub; from sllm_jax.common.errors import SllmError\n"
        "hub._from_hub = lambda *_: hub.Path()\n"
        f"try: hub.resolve({address!r}.format('a' * 500_000))\n"
        "except SllmError: pass"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
