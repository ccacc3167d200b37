"""Textual inversion files in all common formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.base.errors import DiffSynthError, UsageError
from stages.diffusion.loading import Networks, load_networks
from stages.diffusion.prompts import encode_prompts
from stages.diffusion.settings import ModelNames
from stages.diffusion.vocabulary import clip_tokenizer
from tests.conftest import MODEL

WIDTH = 32
PLAIN = ModelNames(model_id=str(MODEL), device="cpu")


def vectors(count: int = 2) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))


def load(*embeddings: tuple[Path, str], **more: Any) -> Networks:
    return load_networks(replace(PLAIN, embeddings=tuple((str(path), token) for path, token in embeddings), **more))


@torch.inference_mode()
def encoded(networks: Networks, prompt: str) -> torch.Tensor:
    return encode_prompts(networks, [prompt])


def token_vectors(networks: Networks) -> torch.Tensor:
    return networks.text_encoder.get_input_embeddings().get_parameter("weight")


def by_hand(networks: Networks, ids: Sequence[int]) -> torch.Tensor:
    """The text encoder's states for these ids, padded to a window."""
    window = networks.text_encoder.config.max_position_embeddings
    ids = [*ids, *[networks.tokenizer.pad_token_id] * (window - len(ids))]
    with torch.inference_mode():
        states: torch.Tensor = networks.text_encoder(torch.tensor([ids]))[0]
    return states


FORMS: dict[str, Callable[[Path], None]] = {
    "a.safetensors": lambda path: save_file({"<a>": vectors()}, path),
    "b.safetensors": lambda path: save_file({"emb_params": vectors()}, path),
    "c.pt": lambda path: torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors()}}, path),
    "d.pt": lambda path: torch.save({"string_to_param": {"*": torch.nn.Parameter(vectors())}, "name": "d"}, path),
    "e.bin": lambda path: torch.save({"<a>": vectors()}, path),
}


@pytest.mark.parametrize("file", FORMS)
def test_every_format_replaces_the_token_by_its_vectors(file: str, tmp_path: Path) -> None:
    FORMS[file](tmp_path / file)
    plain, taught = load(), load((tmp_path / file, "fluffy"), allow_pickle=True)
    known = len(token_vectors(plain))
    weight = token_vectors(taught)
    torch.testing.assert_close(weight[known:], vectors())
    assert torch.equal(weight[:known], token_vectors(plain))
    assert not any(parameter.requires_grad for parameter in taught.text_encoder.parameters())
    start, *words, end = plain.tokenizer("a cat").input_ids
    expected = by_hand(taught, [start, *words, known, known + 1, end])
    torch.testing.assert_close(encoded(taught, "a cat fluffy"), expected)
    torch.testing.assert_close(encoded(taught, "a cat"), encoded(plain, "a cat"))


def test_one_vector_may_be_written_without_a_list(tmp_path: Path) -> None:
    save_file({"<a>": vectors(1)[0]}, tmp_path / "a.safetensors")
    taught = load((tmp_path / "a.safetensors", "<a>"))
    ((index,),) = taught.inverted.values()
    torch.testing.assert_close(token_vectors(taught)[index], vectors(1)[0])


@pytest.mark.parametrize(
    ("prompt", "found"),
    [("Fluffy, a cat", 1), ("(fluffy:1.2) fluffy", 2), ("fluffyness unfluffy", 0), ("a fluffy-cat", 1)],
)
def test_the_word_is_found_where_it_is_a_word(prompt: str, found: int, tmp_path: Path) -> None:
    save_file({"emb_params": vectors()}, tmp_path / "a.safetensors")
    taught = load((tmp_path / "a.safetensors", "fluffy"))
    (word,) = taught.inverted
    assert taught.tokenizer(prompt).input_ids.count(word) == found


def test_other_words_keep_their_ids(tmp_path: Path) -> None:
    save_file({"emb_params": vectors()}, tmp_path / "a.safetensors")
    plain, taught = load().tokenizer, load((tmp_path / "a.safetensors", "fluffy")).tokenizer
    for prompt in ("winter, snow; it's 12 below!", "a  Photo of CATS (masterpiece:1.2)", ""):
        assert plain(prompt).input_ids == taught(prompt).input_ids


def test_several_files_bring_several_words(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 3)):
        save_file({"emb_params": vectors(count)}, tmp_path / f"{name}.safetensors")
    taught = load((tmp_path / "a.safetensors", "fluffy"), (tmp_path / "b.safetensors", "<grim-style>"))
    weight = token_vectors(taught)
    first, second = taught.inverted.values()
    torch.testing.assert_close(weight[list(first)], vectors(2))
    torch.testing.assert_close(weight[list(second)], vectors(3))
    ids = taught.tokenizer("a <grim-style> and fluffy").input_ids
    assert [word for word in ids if word in taught.inverted] == list(taught.inverted)[::-1]


def test_a_prompt_grows_by_whole_windows(tmp_path: Path) -> None:
    save_file({"emb_params": vectors(80)}, tmp_path / "a.safetensors")
    taught = load((tmp_path / "a.safetensors", "fluffy"))
    window = taught.text_encoder.config.max_position_embeddings
    assert encoded(taught, "fluffy").shape[1] == 2 * window


def test_words_of_the_real_vocabulary_are_known() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer.tokenize("cat")) == len(tokenizer.tokenize("Cat")) == 1
    assert len(tokenizer.tokenize("easynegative")) > 1


def broken(path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 768)}, path / "wide.safetensors")
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, path / "xl.safetensors")
    save_file({"one": vectors(), "two": vectors()}, path / "two.safetensors")
    save_file({"lora_unet_x.alpha": torch.tensor(1.0)}, path / "lora.safetensors")
    save_file({"emb_params": vectors(0)}, path / "empty.safetensors")
    save_file({"emb_params": vectors()}, path / "right.safetensors")
    (path / "cut.safetensors").write_bytes((path / "right.safetensors").read_bytes()[:60])
    torch.save({"string_to_param": vectors()}, path / "odd.pt")
    torch.save([1, 2], path / "list.pt")


@pytest.mark.parametrize(
    ("file", "token", "expected"),
    [
        ("wide.safetensors", "fluffy", "has vectors of 768 values, but the model needs 32"),
        ("xl.safetensors", "fluffy", "is made for Stable Diffusion XL"),
        ("two.safetensors", "fluffy", "has 2 lists of vectors instead of one"),
        ("lora.safetensors", "fluffy", "has 0 lists of vectors instead of one"),
        ("empty.safetensors", "fluffy", "has 0 lists of vectors instead of one"),
        ("cut.safetensors", "fluffy", "cannot be read"),
        ("odd.pt", "fluffy", "has 0 lists of vectors instead of one"),
        ("list.pt", "fluffy", "does not hold named tensors"),
        ("right.safetensors", "a", "the word 'a' is already in the vocabulary"),
        ("right.safetensors", "A", "the word 'A' is already in the vocabulary"),
    ],
)
def test_unusable_files_are_named(file: str, token: str, expected: str, tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(DiffSynthError, match=f"embeddings: {re.escape(str(tmp_path / file))}") as error:
        load((tmp_path / file, token), allow_pickle=True)
    assert expected in error.value.message and "\n" not in error.value.message


def test_two_files_of_one_word_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": vectors()}, tmp_path / "a.safetensors")
    with pytest.raises(DiffSynthError, match="the word 'Fluffy' is already in the vocabulary"):
        load((tmp_path / "a.safetensors", "fluffy"), (tmp_path / "a.safetensors", "Fluffy"))


def test_pickles_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    FORMS["c.pt"](tmp_path / "c.pt")
    with pytest.raises(UsageError, match="is a pickle"):
        load((tmp_path / "c.pt", "fluffy"))
