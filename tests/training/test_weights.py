"""Starting weights of other formats end up where they belong, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTJConfig, GPTJForCausalLM

from tests.reference.resnet import modified_resnet_class
from tests.small_configs import small_config
from tests.tolerances import FLOAT32, assert_close
from tests.utils.published_module import deepspeed_file, published_state
from training.model import Magma
from training.weights import load_clip, load_gptj, load_magma, published_name
from utils.checkpoint_layout import AdapterLayout, AdapterSpec
from utils.errors import UserError

V1 = AdapterLayout(mlp=AdapterSpec("normal", 16))
V2 = AdapterLayout(mlp=AdapterSpec("normal", 8), attention=AdapterSpec("normal", 8))
SCALED = AdapterLayout(
    mlp=AdapterSpec("scaled_parallel", 8, layer_norm=True), attention=AdapterSpec("parallel", 4)
)


@pytest.fixture
def config():
    return small_config(image_resolution=64)


@pytest.fixture
def generator(rng) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(1 << 30)))


def gptj(config, vocab: int = 116, **changes) -> GPTJForCausalLM:
    text = config.transformer
    sizes = {
        "n_embd": text.hidden_size,
        "n_layer": text.layers,
        "n_head": text.attention.heads,
        "rotary_dim": text.attention.rotary_dim,
        "n_positions": config.total_tokens,
    }
    options = {"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"}
    return GPTJForCausalLM(GPTJConfig(vocab_size=vocab, **{**sizes, **changes}, **options)).eval()


@pytest.mark.parametrize("layout", [V1, V2, SCALED, AdapterLayout()], ids=AdapterLayout.describe)
def test_a_magma_checkpoint_of_every_layout_fills_the_whole_model(
    config, layout, generator, tmp_path: Path
):
    state = published_state(config, layout, generator, torch.float32)
    torch.save(deepspeed_file(state), tmp_path / "model.pt")
    model = Magma(config, layout)
    load_magma(model, tmp_path / "model.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[published_name(name)]), name


def test_half_precision_weights_are_widened(config, generator, tmp_path: Path):
    state = published_state(config, V1, generator)
    torch.save(state, tmp_path / "model.pt")
    model = Magma(config, V1)
    load_magma(model, tmp_path / "model.pt")
    assert model.image_prefix.proj.weight.dtype == torch.float32
    assert torch.equal(model.image_prefix.proj.weight, state["image_prefix.proj.weight"].float())


def test_a_checkpoint_of_other_adapters_is_refused(config, generator, tmp_path: Path):
    torch.save(published_state(config, V1, generator), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"layout is v1 .* asks for v2"):
        load_magma(Magma(config, V2), tmp_path / "model.pt")


def test_a_checkpoint_of_other_dimensions_is_refused(config, generator, tmp_path: Path):
    torch.save(published_state(config, V1, generator), tmp_path / "model.pt")
    wider = small_config(image_resolution=64, hidden_size=72)
    with pytest.raises(
        UserError, match=r"other sizes: lm\.transformer\.wte\.weight is \(106, 64\)"
    ):
        load_magma(Magma(wider, V1), tmp_path / "model.pt")


@pytest.mark.parametrize(
    "name", ["image_prefix.ln.bias", "lm.transformer.h.1.mlp.1.adapter.0.bias"]
)
def test_a_missing_tensor_is_named(config, generator, tmp_path: Path, name):
    state = published_state(config, V1, generator)
    del state[name]
    state.pop(name.removeprefix("lm.").replace("transformer.h.", "transformer."), None)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_magma(Magma(config, V1), tmp_path / "model.pt")


def test_a_surplus_tensor_is_named(config, generator, tmp_path: Path):
    state = published_state(config, V1, generator)
    state["lm.transformer.extra"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"has no place in the model for lm\.transformer\.extra"):
        load_magma(Magma(config, V1), tmp_path / "model.pt")


@pytest.mark.parametrize("layout", [AdapterLayout(), V2, SCALED], ids=AdapterLayout.describe)
def test_a_hugging_face_folder_gives_the_language_model(config, layout, tmp_path: Path, rng):
    source = gptj(config)
    torch.nn.init.normal_(source.lm_head.bias)
    source.save_pretrained(tmp_path)
    model = Magma(config, layout).eval()
    adapters = {n: t.clone() for n, t in model.state_dict().items() if ".adapter" in n}
    load_gptj(model, tmp_path)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in adapters.items())
    for name, parameter in model.named_parameters():
        if ".adapter." in name:
            parameter.data.zero_()  # adapters that do nothing
    ids = torch.from_numpy(rng.integers(0, 106, (2, 9)))
    expected = source(ids).logits.detach().numpy()
    assert_close(model.logits(ids).detach().numpy(), expected, FLOAT32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 8}, "n_head is 8, the configuration says 4"),
        ({"rotary_dim": 8}, "rotary_dim is 8, the configuration says 6"),
        ({"n_layer": 3}, r"has no place in the model for transformer\.h\.2\."),
        ({"n_layer": 1}, r"lacks transformer\.h\.1\."),
        ({"n_embd": 80}, r"other sizes: transformer\.wte\.weight is \(116, 80\)"),
        ({"vocab": 130}, r"other sizes: transformer\.wte\.weight is \(130, 64\)"),
    ],
)
def test_another_gptj_is_refused(config, tmp_path: Path, changes, message):
    gptj(config, **changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        load_gptj(Magma(config), tmp_path)


def test_a_folder_of_another_kind_is_refused(config, tmp_path: Path):
    gptj(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"gptj"', '"gpt2"'))
    with pytest.raises(UserError, match="of type 'gpt2'; expected 'gptj'"):
        load_gptj(Magma(config), tmp_path)


def clip_visual(config, generator) -> dict[str, torch.Tensor]:
    visual = config.visual
    network = modified_resnet_class()(
        layers=list(visual.layers), output_dim=24, heads=4, image_size=64, width=visual.width
    )
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return network.state_dict()


def whole_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    text = {"positional_embedding": torch.zeros(3, 4), "logit_scale": torch.ones(())}
    text["transformer.resblocks.0.ln_1.weight"] = torch.zeros(4)
    return {**{f"visual.{name}": tensor for name, tensor in state.items()}, **text}


@pytest.mark.parametrize("form", ["pt", "safetensors", "open_clip", "visual"])
def test_clip_s_file_gives_the_encoder(config, generator, tmp_path: Path, form):
    state = clip_visual(config, generator)
    path = tmp_path / ("clip.safetensors" if form == "safetensors" else "clip.pt")
    if form == "safetensors":
        save_file(whole_clip(state), path)
    elif form == "open_clip":
        wrapped = {f"module.{name}": tensor for name, tensor in whole_clip(state).items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, path)
    else:
        torch.save(whole_clip(state) if form == "pt" else state, path)
    model = Magma(config)
    load_clip(model, path)
    for name, tensor in model.image_prefix.enc.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_another_clip_is_refused(config, generator, tmp_path: Path):
    torch.save(whole_clip(clip_visual(config, generator)), tmp_path / "clip.pt")
    wider = small_config(image_resolution=64, visual_width=16)
    with pytest.raises(UserError, match=r"other sizes: conv1\.weight is \(4, 3, 3, 3\)"):
        load_clip(Magma(wider), tmp_path / "clip.pt")


def test_a_file_that_runs_code_is_refused(config, tmp_path: Path):
    torch.save({"conv1.weight": Path}, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="refused: the file asks to run"):
        load_clip(Magma(config), tmp_path / "clip.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of making an archive
def test_openai_s_form_of_a_clip_file_gives_the_encoder(config, generator, tmp_path: Path):
    class Clip(torch.nn.Module):  # its visual half, in half precision
        def __init__(self) -> None:
            super().__init__()
            self.visual = Magma(config).image_prefix.enc
            self.logit_scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.visual(x) * self.logit_scale

    clip = Clip()
    clip.visual.load_state_dict(clip_visual(config, generator), strict=False)
    clip = clip.bfloat16().eval().requires_grad_(False)
    side = config.visual.image_resolution
    picture = torch.zeros(1, 3, side, side, dtype=torch.bfloat16)
    torch.jit.save(torch.jit.trace(clip, picture), tmp_path / "clip.pt")
    model = Magma(config)
    load_clip(model, tmp_path / "clip.pt")
    for name, tensor in model.image_prefix.enc.state_dict().items():
        assert torch.equal(tensor, clip.visual.state_dict()[name].to(tensor.dtype)), name
