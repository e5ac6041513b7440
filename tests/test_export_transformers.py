"""The exported folder in transformers: logits, states, generation and tokens are ours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_text
from hypothesis import given
from hypothesis import strategies as st
from test_export import TOKENIZERS, run
from test_network import SHAPES, log_softmax, make_config, numpy_network, random_ids, random_weights

from textlstm.config import ModelConfig
from textlstm.errors import ModelFileError
from textlstm.export import export
from textlstm.model import Model
from textlstm.model_file import ModelFile, read_model
from textlstm.registry import find_model
from textlstm.tokenizer import CharTokenizer

pytestmark = pytest.mark.slow
LETTERS = CharTokenizer("abcdefghijklmnopqrstuv", byte_fallback=False)
TEXT = make_text(3_000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The library, offline, with its caches in a folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.utils.logging.disable_progress_bar()
        yield transformers


def load(hub, folder):
    model, notes = hub.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(notes.values()), notes
    return model.eval()


def exported(path, shape="tied", **changes):
    config = make_config(shape, **changes)
    file = ModelFile(config, LETTERS, random_weights(config), {"note": "é"}, "")
    export(file, "transformers", path)
    return file


def expected_logits(file: ModelFile, ids: np.ndarray) -> np.ndarray:
    """Logits (B, T, V) after each id of texts that begin behind the boundary, by the equations."""
    boundary = file.config.boundary_id
    if boundary is None:
        return numpy_network(file.config, file.weights, ids)[0]
    begun = np.concatenate([np.full((len(ids), 1), boundary), ids], axis=1)
    return numpy_network(file.config, file.weights, begun)[0][:, 1:]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_states_and_loss_are_ours(hub, tmp_path, shape):
    file = exported(tmp_path / "out", shape)
    model = load(hub, tmp_path / "out")
    ids = random_ids(3, 20, 22)
    expected = expected_logits(file, ids)
    output = model(torch.from_numpy(ids), labels=torch.from_numpy(ids))
    np.testing.assert_allclose(output.logits, expected, atol=1e-4, rtol=0)
    nats = -np.take_along_axis(log_softmax(expected[:, :-1]), ids[:, 1:, None], 2).mean()
    assert float(output.loss) == pytest.approx(nats, abs=1e-4)
    state = None
    for t in range(20):
        one = model(torch.from_numpy(ids[:, t : t + 1]), past_key_values=state)
        state = one.past_key_values
        np.testing.assert_allclose(one.logits[:, 0], expected[:, t], atol=1e-4, rtol=0)
    assert state.length == 20


@torch.no_grad()
def test_a_boundary_that_is_named_is_not_read_twice(hub, tmp_path):
    file = exported(tmp_path / "out")
    model = load(hub, tmp_path / "out")
    ids = random_ids(2, 9, 22)
    ids[0, 0] = ids[1, 5] = file.config.boundary_id
    logits = model(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(logits[0], numpy_network(file.config, file.weights, ids[:1])[0][0], atol=1e-4)
    np.testing.assert_allclose(logits[1], expected_logits(file, ids[1:])[0], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(hub, tmp_path, side):
    file = exported(tmp_path / "out")
    model = load(hub, tmp_path / "out")
    ids, mask = random_ids(3, 12, 22), np.ones((3, 12), int)
    places = [slice(0, 12), slice(5, 12), slice(11, 12)] if side == "left" else [slice(0, n) for n in (12, 7, 1)]
    for row, place in enumerate(places):
        mask[row] = 0
        mask[row, place] = 1
    ids[mask == 0] = file.config.boundary_id
    logits = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    for row, place in enumerate(places):
        expected = expected_logits(file, ids[row : row + 1, place])
        np.testing.assert_allclose(logits[row, place], expected[0], atol=1e-4)


def test_greedy_text_of_shakespeare_is_ours(hub, tmp_path):
    ours = Model.load("shakespeare", engine="torch")
    ours.export(tmp_path / "out", to="transformers")
    model = load(hub, tmp_path / "out")
    tokenizer = hub.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    prompts = ["KING HENRY V:\n", "O"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    written = model.generate(**batch, max_new_tokens=200, do_sample=False)
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert texts == [p + ours.generate(p, temperature=0, max_tokens=200) for p in prompts]
    alone = model.generate(max_new_tokens=200, do_sample=False)  # the library begins with the boundary
    assert tokenizer.decode(alone[0], skip_special_tokens=True) == ours.generate("", temperature=0, max_tokens=200)


def test_what_no_text_has_is_never_drawn(hub, tmp_path):
    file = exported(tmp_path / "out", boundary=False)
    file.weights["head.bias"][22] = 99
    export(file, "transformers", tmp_path / "loud")
    model = load(hub, tmp_path / "loud")
    written = model.generate(torch.from_numpy(random_ids(2, 3, 22)), max_new_tokens=30, do_sample=True)
    assert written.shape == (2, 33) and int(written.max()) < 22


def test_beams_and_several_texts_carry_their_states(hub, tmp_path):
    exported(tmp_path / "out")
    model = load(hub, tmp_path / "out")
    ids = torch.from_numpy(random_ids(2, 6, 22))
    options = dict(num_beams=5, num_return_sequences=3, max_new_tokens=25, do_sample=False)
    with_state = model.generate(ids, **options)
    again = model.generate(ids, use_cache=False, **options)  # reads everything anew at each step
    assert with_state.tolist() == again.tolist() and len({tuple(row) for row in with_state.tolist()}) == 6


def test_gradients_reach_every_weight(hub, tmp_path):
    exported(tmp_path / "out", "untied-input-projection-scaled")
    model = load(hub, tmp_path / "out").train()
    ids = torch.from_numpy(random_ids(2, 9, 22))
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_tokens_are_ours(hub, tmp_path, name, extra):
    ours = TOKENIZERS[name]
    config = ModelConfig(ours.vocab_size + extra, 4, 4, 1, boundary=extra > 0)
    export(ModelFile(config, ours, random_weights(config), {}, ""), "transformers", tmp_path / "out")
    theirs = hub.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert len(theirs) == config.vocab_size and theirs.bos_token_id == config.boundary_id

    @given(
        st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["a<|boundary|>b", " , . 's"]))
    )
    def agree(text):
        ids = ours.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)

    agree()
    assert theirs(TEXT)["input_ids"] == ours.encode(TEXT).tolist()


def test_the_folder_is_a_model_again(tmp_path):
    file = exported(tmp_path / "out", "tied-output-projection")
    again = read_model(find_model(tmp_path / "out"))
    assert dataclasses.replace(again, sha256="", tokenizer=LETTERS, weights={}) == dataclasses.replace(
        file, weights={}
    )
    assert again.tokenizer.fingerprint == LETTERS.fingerprint
    assert all(np.array_equal(again.weights[name], array) for name, array in file.weights.items())
    done = run("generate", tmp_path / "out", "abc", "--max-tokens", "5", "--seed", "1")
    assert done.exit_code == 0 and done.output.startswith("abc")


def test_what_the_library_saved_itself_is_refused_with_words(hub, tmp_path):
    exported(tmp_path / "out")
    load(hub, tmp_path / "out").save_pretrained(tmp_path / "saved")
    with pytest.raises(ModelFileError, match="is not a model of textlstm"):
        read_model(find_model(tmp_path / "saved"))
