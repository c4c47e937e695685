"""The Python interface against the layers below it and against the PyTorch reference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import popxl
import pytest
import torch
import yaml
from PIL import Image
from transformers import GenerationConfig, NoRepeatNGramLogitsProcessor

from config.parsing import load_preset
from execution import sessions
from execution.engine import EngineOptions
from execution.magma import Answer, ImageInput, Magma, Options
from execution.report import read_trace
from tests.reference.magma import ReferenceMagma
from tests.tolerances import FLOAT32, assert_close
from utils.checkpoint import open_checkpoint, write_random_checkpoint
from utils.errors import UserError
from utils.images import preprocess
from utils.model_folder_rows import Storage
from utils.model_folder_writer import write_model_folder
from utils.sampling import log_softmax

SEED = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small preset and four pictures."""
    folder = tmp_path_factory.mktemp("model")
    write_random_checkpoint(folder / "model.pt", load_preset("tiny"), seed=SEED, dtype="float32")
    rng = np.random.default_rng(SEED)
    for name in "abcd":
        patches = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(np.kron(patches, np.ones((20, 20, 1), np.uint8))).save(
            folder / f"{name}.png"
        )
    return folder


@pytest.fixture(scope="module")
def magma(folder: Path) -> Iterator[Magma]:
    with Magma.from_pretrained(folder / "model.pt", config="tiny") as magma:
        yield magma


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceMagma:
    return ReferenceMagma.from_checkpoint(folder / "model.pt", load_preset("tiny"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every session that is built from now on, with what it was given."""
    seen: list[dict[str, Any]] = []
    build, load = sessions.build_session, sessions.load_weights

    def building(config: Any, scheme: str, engine: EngineOptions) -> Any:
        seen.append({"batch": config.batch, "scheme": scheme, "device": engine.device})
        return build(config, scheme, engine)

    def loading(session: Any, weights: Any) -> None:
        seen[-1]["weights"] = weights
        load(session, weights)

    monkeypatch.setattr(sessions, "build_session", building)
    monkeypatch.setattr(sessions, "load_weights", loading)
    return seen


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def embedded(reference: ReferenceMagma, magma: Magma, pieces: list[Any]) -> torch.Tensor:
    """[1, s, h] of texts and pictures (paths)."""
    side = magma.config.visual.image_resolution
    parts = []
    for piece in pieces:
        if isinstance(piece, Path):
            pixels = preprocess(Image.open(piece), side)
            parts.append(reference.embed_image(torch.from_numpy(pixels)))
        else:
            parts.append(reference.embed_text(torch.tensor([magma.tokenizer.encode(piece)])))
    return torch.cat(parts, dim=1)


def reference_logits(
    reference: ReferenceMagma, magma: Magma, pieces: list[Any], ids: list[int]
) -> np.ndarray:
    """[len(ids), v] of forced ids behind a prompt."""
    parts = [
        embedded(reference, magma, pieces),
        reference.embed_text(torch.tensor([ids[:-1]], dtype=torch.int64)),
    ]
    with torch.no_grad():
        logits = reference.lm(inputs_embeds=torch.cat(parts[: len(ids)], dim=1)).logits[0]
    return logits[-len(ids) :].numpy()


def check_greedy(reference: ReferenceMagma, magma: Magma, pieces: list[Any], a: Answer) -> None:
    """Ids, logits and log-probabilities are those of the reference's own greedy choice."""
    expected = reference_logits(reference, magma, pieces, a.ids)
    assert a.ids == expected.argmax(axis=-1).tolist()
    assert_close(a.logits, expected, FLOAT32)
    chosen = log_softmax(expected)[np.arange(len(a.ids)), a.ids]
    assert_close(np.array(a.log_probs), chosen, FLOAT32)


GREEDY: Any = {"temperature": 0, "max_new_tokens": 5, "output_logits": True}


def test_greedy_answers_are_the_references(magma, reference, folder):
    pictures = [folder / f"{name}.png" for name in "abc"]
    prompts = ["A", "What is this? A:", ""]
    answers = magma.generate(pictures, prompts, **GREEDY)
    for index, answer in enumerate(answers):
        pieces = [pictures[index], prompts[index]] if prompts[index] else [pictures[index]]
        check_greedy(reference, magma, pieces, answer)
        assert answer.prompt_ids == magma.tokenizer.encode(prompts[index])
        assert answer.text == magma.tokenizer.decode(answer.ids, skip_special_tokens=True)
        ended = answer.ids[-1] == magma.tokenizer.eos_token_id
        assert answer.finish_reason == ("eos" if ended else "length")
        assert (answer.prompt, answer.sample) == (index, 0)


def test_pictures_and_texts_in_any_order(magma, reference, folder):
    a, b = folder / "a.png", folder / "b.png"
    prompts = [["One ", a, " two ", b, " is"], [b, a], ["text alone"]]
    for pieces, answer in zip(prompts, magma.generate(prompts=prompts, **GREEDY), strict=True):
        check_greedy(reference, magma, pieces, answer)


def test_forms_of_pictures_and_prompts(magma, folder):
    path = folder / "a.png"
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    (expected,) = texts(magma.generate(path, "A", **GREEDY))
    for picture in (str(path), ImageInput(path), image, np.asarray(image)):
        assert texts(magma.generate(picture, "A", **GREEDY)) == [expected]
    for picture in (path, ImageInput(str(path)), image):
        assert texts(magma.generate(prompts=[picture, "A"], **GREEDY)) == [expected]
    assert texts(magma.generate([path], ["A"], **GREEDY)) == [expected]
    assert texts(magma.generate([path, path], "A", **GREEDY)) == [expected] * 2
    assert texts(magma.generate(path, ["A", "A"], **GREEDY)) == [expected] * 2
    assert texts(magma.generate([[path], None], ["A", [path, "A"]], **GREEDY)) == [expected] * 2


def test_batches_larger_than_a_session_run_in_turns(folder, magma, built):
    pictures = [folder / f"{name}.png" for name in "abcd"] * 2
    prompts = [f"{number} is" for number in range(7)]
    how: Any = {"temperature": 1.0, "seed": 3, "max_new_tokens": 6}
    with Magma.from_pretrained(folder / "model.pt", config="tiny", max_batch=3) as small:
        answers = small.generate(pictures[:7], prompts, **how)
        assert [entry["batch"] for entry in built] == [3, 1]
        alone = [small.generate(pictures[:1], prompts[:1], **how)[0] for _ in range(2)]
    assert texts(answers) == texts(magma.generate(pictures[:7], prompts, **how))
    assert texts(alone) == [answers[0].text] * 2


def test_sessions_share_their_weights(folder, built):
    with Magma.from_pretrained(folder / "model.pt", config="tiny") as magma:
        for prompts in (["a"], ["a"] * 3, ["a"] * 2):
            magma.generate(prompts=prompts, temperature=0, max_new_tokens=2)
    # Two fit into the session for three.
    assert [entry["batch"] for entry in built] == [1, 3]
    first, second = (entry["weights"] for entry in built)
    assert first.keys() == second.keys()
    assert all(first[key] is second[key] for key in first)
    assert not any(array.flags.writeable for array in first.values() if array.base is not None)


def test_options_never_rebuild_a_session_nor_lower_it_again(magma, built, monkeypatch):
    magma.generate(prompts="A", max_new_tokens=3)
    del built[:]
    plans = magma.open_session()._engine._plans
    before = set(plans)
    monkeypatch.setattr(popxl.Ir, "create_empty_graph", None)
    for option in (
        {"temperature": 0.2}, {"top_k": 3}, {"top_p": 0.2, "top_p_mode": "magma"}, {"seed": 8},
        {"repetition_penalty": 1.5}, {"stop_strings": "x"}, {"stop_tokens": [3]},
        {"top_log_probs": 2}, {"min_new_tokens": 2}, {"output_logits": True},
        {"logits_processor": [NoRepeatNGramLogitsProcessor(2)]},
    ):  # fmt: skip
        magma.generate(prompts="A", max_new_tokens=3, **option)
    assert built == []
    assert set(plans) == before != set()


def test_samples_share_one_prefill(folder, tmp_path):
    magma = Magma.from_pretrained(folder / "model.pt", config="tiny", trace=tmp_path)
    with magma:
        answers = magma.generate(
            folder / "a.png", "A", num_return_sequences=3, temperature=1, max_new_tokens=8
        )
    assert len(set(texts(answers))) == 3
    assert [(a.prompt, a.sample) for a in answers] == [(0, 0), (0, 1), (0, 2)]
    phases = {row.name: row.runs for row in read_trace(tmp_path / "batch_3.json") or ()}
    assert phases["image_prefix"] == 1
    assert phases["prefill/decoder"] == magma.config.transformer.layers


def test_pieces_join_to_the_text(magma, folder):
    how: Any = {"temperature": 1.5, "top_p": 1.0, "max_new_tokens": 30}
    stream = magma.stream(folder / "a.png", "A", **how)
    pieces = list(stream)
    (answer,) = magma.generate(folder / "a.png", "A", **how)
    assert "".join(pieces) == answer.text == stream.answers[0].text
    assert len(pieces) > 10
    several = magma.stream(folder / "a.png", ["A", "B"], num_return_sequences=2, **how)
    joined = [""] * 4
    for piece in several:
        joined[piece.answer] += piece
    assert joined == texts(several.answers) == texts(
        magma.generate(folder / "a.png", ["A", "B"], num_return_sequences=2, **how)
    )  # fmt: skip


def test_a_stream_shows_what_there_is_so_far(magma):
    stream = magma.stream(prompts="A", temperature=0, max_new_tokens=8, min_new_tokens=8)
    first = next(stream)
    (answer,) = stream.answers
    assert answer.text == first
    assert answer.finish_reason is None
    assert len(answer.ids) < 8
    list(stream)
    assert len(answer.ids) == 8


def test_a_stream_ends_when_the_model_is_used_otherwise(magma):
    stream = magma.stream(prompts="A", temperature=0, max_new_tokens=8, min_new_tokens=8)
    next(stream)
    magma.generate(prompts="B", max_new_tokens=1)
    with pytest.raises(UserError, match="used for something else"):
        list(stream)


def test_alternatives_are_the_most_probable_tokens(magma):
    how = GREEDY | {"temperature": 1, "top_log_probs": 3}
    (answer,) = magma.generate(prompts="A", **how)
    log_probs = log_softmax(answer.logits)
    for row, token, log_prob, others in zip(
        log_probs, answer.ids, answer.log_probs, answer.alternatives, strict=True
    ):
        assert log_prob == row[token]
        assert [other.id for other in others] == np.argsort(-row)[:3].tolist()
        assert [other.log_prob for other in others] == sorted(row)[:-4:-1]
        assert [other.text for other in others] == [
            magma.tokenizer.decode([other.id]) for other in others
        ]


def test_stops(magma):
    how: Any = {"temperature": 0, "max_new_tokens": 12, "min_new_tokens": 12}
    (whole,) = magma.generate(prompts="A", **how)
    assert whole.finish_reason == "length"
    how["min_new_tokens"] = 0
    token = whole.ids[4]
    (ended,) = magma.generate(prompts="A", stop_tokens=[token], **how)
    first = whole.ids.index(token)
    assert ended.ids == whole.ids[: first + 1]
    assert ended.finish_reason == "eos"
    stop = whole.text[3:6]
    (stopped,) = magma.generate(prompts="A", stop_strings=[stop, "\x00 never"], **how)
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop_string"
    assert stopped.ids == whole.ids[: len(stopped.ids)]
    (late,) = magma.generate(prompts="A", stop_strings=stop, **how | {"min_new_tokens": 11})
    assert len(late.ids) >= 11
    (forced,) = magma.generate(
        prompts="A", stop_tokens=[whole.ids[0]], **how | {"min_new_tokens": 3}
    )
    assert forced.ids[0] != whole.ids[0]


def test_repetition_is_penalised_in_prompt_and_answer(magma):
    how: Any = {"temperature": 0, "max_new_tokens": 20, "min_new_tokens": 20}
    (answer,) = magma.generate(prompts="A", repetition_penalty=1e6, **how)
    ids = answer.prompt_ids + answer.ids
    assert len(set(ids)) == len(ids)


def test_generation_config_and_arguments(magma):
    config = GenerationConfig(max_new_tokens=7, min_new_tokens=7, no_repeat_ngram_size=1)
    (answer,) = magma.generate(prompts="A", generation_config=config)
    assert len(set(answer.ids)) == 7
    (again,) = magma.generate(
        prompts="A", temperature=0, max_new_tokens=7, min_new_tokens=7,
        logits_processor=[NoRepeatNGramLogitsProcessor(1)],
    )  # fmt: skip
    assert again.ids == answer.ids
    (short,) = magma.generate(
        prompts="A", generation_config=config, max_new_tokens=2, min_new_tokens=2
    )
    assert short.ids == answer.ids[:2]
    with pytest.raises(UserError, match="num_beams"):
        magma.generate(prompts="A", generation_config=GenerationConfig(num_beams=3))


def test_scores_are_the_references(magma, reference, folder):
    pictures, prompts = [folder / "a.png", folder / "b.png"], ["A dog", "What"]
    continuations = [[" is red", " a", " and the cat"], [" else", " is"]]
    scores = magma.score(pictures, prompts, continuations)
    ours, theirs = [], []
    for picture, prompt, texts_of, line in zip(
        pictures, prompts, continuations, scores, strict=True
    ):
        assert [score.text for score in line] == texts_of
        for score in line:
            assert score.ids == magma.tokenizer.encode(score.text)
            logits = reference_logits(reference, magma, [picture, prompt], score.ids)
            expected = log_softmax(logits)[np.arange(len(score.ids)), score.ids]
            assert score.log_prob == pytest.approx(expected.sum(), rel=1e-4)
            ours += score.log_probs
            theirs += expected.tolist()
    assert_close(np.array(ours), np.array(theirs), FLOAT32)


def test_scores_of_an_answer_are_its_log_probabilities(magma, folder):
    (answer,) = magma.generate(folder / "a.png", "A", temperature=0, max_new_tokens=4)
    ((score,),) = magma.score(folder / "a.png", "A", [answer.text])
    if score.ids == answer.ids:
        assert_close(np.array(score.log_probs), np.array(answer.log_probs), FLOAT32)
    shared = magma.score(folder / "a.png", ["A", "B"], (t for t in [answer.text, " no"]))
    assert [len(line) for line in shared] == [2, 2]
    assert shared[0][0].log_prob == pytest.approx(score.log_prob, rel=1e-4)


def test_embeddings_are_the_references(magma, reference, folder):
    prompts = [["One ", folder / "a.png", " two"], ["text"]]
    for pieces, found in zip(prompts, magma.embed(prompts=prompts), strict=True):
        assert_close(found, embedded(reference, magma, pieces)[0].detach().numpy(), FLOAT32)


def test_the_older_interface_continues_embeddings(magma, folder):
    inputs = [ImageInput(folder / "a.png"), "Describe the painting:"]
    before = list(inputs)
    embeddings = magma.preprocess_inputs(inputs)
    assert inputs == before
    assert_close(
        magma.preprocess_inputs("two words"), magma.embed(prompts="two words")[0][None], FLOAT32
    )
    length = magma.config.image_tokens + len(magma.tokenizer.encode(inputs[1]))
    assert embeddings.shape == (1, length, magma.config.transformer.hidden_size)
    how: Any = {"temperature": 0, "top_k": 0, "top_p": 0.9}
    (expected,) = magma.generate(prompts=inputs, max_new_tokens=6, **how)
    assert magma.generate(embeddings=embeddings, max_steps=6, **how) == [expected.text]
    assert magma.generate(
        embeddings=torch.from_numpy(embeddings).requires_grad_(), max_steps=6, decode=False, **how
    ) == [expected.ids]
    both = np.concatenate([embeddings, embeddings])
    assert magma.generate(embeddings=both, max_steps=6, **how) == [expected.text] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(embeddings=np.zeros((3, 64))), r"shape \(3, 64\)"),
        (lambda m: m.generate(embeddings=[[[1], [2, 3]]]), "no array of numbers"),
        (lambda m: m.generate(embeddings="text"), "no array of numbers"),
        (lambda m: m.generate(embeddings=np.zeros((0, 3, 64))), r"shape \(0, 3, 64\)"),
        (lambda m: m.preprocess_inputs(5), "pieces of a prompt are int"),
        (lambda m: m.score(prompts="A", continuations=None), "nothing to score"),
        (lambda m: m.score(prompts=["A", "B"], continuations=[[], []]), "nothing to score"),
        (lambda m: m.score(prompts=["A", "B"], continuations=[" a", [" b"]]), "must be texts"),
        (lambda m: m.score(prompts="A", continuations=[5]), "must be texts"),
        (lambda m: m.generate(embeddings=np.zeros((1, 3, 63))), "expected .*64"),
        (lambda m: m.generate("a.png", embeddings=np.zeros((1, 3, 64))), "either embeddings"),
        (lambda m: m.generate(embeddings=np.zeros((1, 60, 64)), max_steps=9), "too long"),
        (lambda m: m.score(prompts="A", continuations=[]), "nothing to score"),
        (lambda m: m.score(prompts="A", continuations=[""]), "continuation 0 is empty"),
        (lambda m: m.score(prompts="A", continuations=[["a"], ["b"]]), "2 lists .* 1 prompts"),
        (lambda m: m.score(prompts="A", continuations=["{" * 70]), "too long"),
    ],
)
def test_what_cannot_be_scored_or_continued(call, message, magma, monkeypatch):
    monkeypatch.setattr(magma, "_sessions", None)
    with pytest.raises(UserError, match=message):
        call(magma)


def test_bad_pictures_are_named_or_skipped(magma, folder):
    pictures = [folder / "a.png", folder / "nowhere.png", folder / "b.png"]
    with pytest.raises(UserError, match=r"picture of prompt 1: .*nowhere\.png"):
        magma.generate(pictures, "A", **GREEDY)
    answers = magma.generate(pictures, "A", skip_bad=True, **GREEDY)
    good = magma.generate(pictures[::2], "A", **GREEDY)
    assert texts(answers) == [good[0].text, "", good[1].text]
    assert "nowhere.png" in answers[1].error
    assert answers[0].error is answers[2].error is None


@pytest.mark.parametrize(
    ("images", "prompts", "options", "message"),
    [
        (None, [], {}, "list of prompts is empty"),
        ([], "A", {}, "list of pictures is empty"),
        (["x.png"] * 2, ["A"] * 3, {}, "2 pictures for 3 prompts"),
        (None, "", {}, "the prompt is empty"),
        (None, ["A", ""], {}, "prompt 1 is empty"),
        (None, ["A", 3], {}, "expected text"),
        (None, "A\udcff", {}, "not valid text"),
        (np.zeros((4, 4)), "A", {}, "expected uint8"),
        (None, "{" * 70, {}, "6 tokens too long"),
        (None, ["A", "{" * 60], {"max_new_tokens": 9}, "prompt 1 .* 4 tokens too long: 60 .* 9"),
        (None, "A", {"max_new_tokens": 0}, "0 new tokens"),
        (None, "A", {"stop_tokens": [512]}, "unknown stop token 512"),
        (None, "A", {"num_return_sequences": 0}, "number of samples is 0"),
        (None, "A", {"temperature": -1}, "temperature is -1"),
    ],
)
def test_bad_input_is_found_before_any_run(images, prompts, options, message, magma, monkeypatch):
    monkeypatch.setattr(magma, "_sessions", None)
    with pytest.raises(UserError, match=message):
        magma.generate(images, prompts, **options)


def test_help_tells_of_every_option():
    for name in Options.__annotations__:
        assert re.search(rf"\b{name}\b", Magma.generate.__doc__ or "")
        assert f"\n        {name}: " in (Options.__doc__ or "")


def test_unknown_options_are_named(magma):
    with pytest.raises(TypeError, match="unknown option 'do_sample'; temperature=0 takes"):
        magma.generate(prompts="A", do_sample=False)
    with pytest.raises(TypeError, match="unknown option 'temprature'; did you mean 'temperature'"):
        magma.generate(prompts="A", temprature=1)


def test_recompute_gives_the_same(magma, folder):
    pictures, prompts = [folder / "a.png", folder / "b.png"], ["A", "the next"]
    plain = Magma.from_pretrained(folder / "model.pt", config="tiny", scheme="recompute")
    with plain:
        answers = plain.generate(pictures, prompts, **GREEDY)
    for one, other in zip(answers, magma.generate(pictures, prompts, **GREEDY), strict=True):
        assert one.ids == other.ids
        assert_close(one.logits, other.logits, FLOAT32)


@pytest.mark.parametrize("dtype", ["float16", np.float16, torch.float16, np.dtype("float16")])
def test_settings_of_a_model(dtype, folder):
    magma = Magma.from_pretrained(
        folder / "model.pt", config="tiny", dtype=dtype, tensor_parallel=4, device="cpu"
    )
    assert {str(magma.config.visual.precision), str(magma.config.transformer.precision)} == {
        "float16"
    }
    assert magma.config.tensor_parallel == 4


def test_the_device_is_the_engines(folder, built, monkeypatch):
    monkeypatch.setenv("POPXL_DEVICE", "nonsense")
    with Magma.from_pretrained(folder / "model.pt", config="tiny", device="cpu") as magma:
        magma.generate(prompts="A", max_new_tokens=1)
    assert built[0]["device"] == "cpu"
    with pytest.raises(UserError, match="nonsense"):
        Magma.from_pretrained(folder / "model.pt", config="tiny")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_preset": "nowhere.pt"}, "no such checkpoint, and no preset"),
        ({"path_or_preset": "x" * 300}, "no such checkpoint, and no preset"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be float16 or float32"),
        ({"dtype": np.float64}, "dtype is 'float64'"),
        ({"tensor_parallel": 3}, "tensor_parallel is 3"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"scheme": "cash"}, "unknown scheme 'cash'"),
        ({"config": "tinny"}, "did you mean 'tiny'"),
        ({"path_or_preset": 5}, "path_or_preset is 5; expected a model folder, a checkpoint, or"),
        ({"path_or_preset": None}, "path_or_preset is None"),
        ({"path_or_preset": b"tiny"}, "path_or_preset is b'tiny'"),
        ({"config": 5}, "config is 5; expected the name of a preset, or a MagmaConfig"),
        ({"tensor_parallel": "2"}, "tensor_parallel is '2'; expected a whole number"),
        ({"tensor_parallel": True}, "tensor_parallel is True"),
        ({"max_batch": 1.5}, "max_batch is 1.5; expected a whole number"),
        ({"trace": 5}, "trace is 5; expected a folder"),
        ({"trace": "/dev/null/x"}, "/dev/null/x: cannot make the folder"),
        ({"trace": "a\0b"}, "is no name of a folder"),
        ({"device_memory": 1.5}, "device_memory is 1.5; expected bytes"),
    ],
)
def test_models_that_cannot_be(arguments, message, folder):
    with pytest.raises(UserError, match=message):
        Magma.from_pretrained(
            **{"path_or_preset": folder / "model.pt", "config": "tiny"} | arguments
        )


def test_a_closed_model_opens_again(magma, built):
    before = texts(magma.generate(prompts="A", **GREEDY))
    magma.close()
    assert texts(magma.generate(prompts="A", **GREEDY)) == before
    assert len(built) >= 1


def test_a_model_folder_knows_its_configuration(magma, folder, tmp_path):
    config = load_preset("tiny")
    checkpoint = open_checkpoint(folder / "model.pt", config)
    write_model_folder(checkpoint, config, tmp_path / "folder", Storage("float32"))
    with Magma.from_pretrained(tmp_path / "folder", max_batch=1) as converted:
        assert converted.config.as_dict() == config.as_dict()
        answers = converted.generate(folder / "a.png", ["A", "B"], **GREEDY)
    assert texts(answers) == texts(magma.generate(folder / "a.png", ["A", "B"], **GREEDY))


def test_the_older_interface_opens_a_checkpoint(folder, tmp_path):
    magma = Magma.from_checkpoint("tiny", folder / "model.pt", device="cpu")
    assert magma.config == load_preset("tiny")
    path = tmp_path / "v1.yml"
    path.write_text(yaml.safe_dump({"encoder_name": "clip_resnet_large"}))
    with pytest.raises(UserError, match="use_image_embed_layernorm"):
        Magma.from_checkpoint(path, folder / "model.pt")
    with pytest.raises(UserError, match="config_path is 5; expected a YAML file of the original"):
        Magma.from_checkpoint(5)
    with pytest.raises(UserError, match="checkpoint_path is 5; expected a checkpoint"):
        Magma.from_checkpoint("tiny", 5)
    with pytest.raises(UserError, match="is no file of a configuration and no preset"):
        Magma.from_checkpoint("x" * 300)


def test_presets_bring_their_weights_to_the_older_interface(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    how: Any = {"temperature": 0, "max_new_tokens": 4}
    with Magma.from_checkpoint("tiny") as older, Magma.from_pretrained("tiny") as newer:
        assert texts(older.generate(prompts="A", **how)) == texts(
            newer.generate(prompts="A", **how)
        )
    assert Magma.from_checkpoint("world").config == load_preset("world")
