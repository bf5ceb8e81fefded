"""Networks of the user: made by the name of their factory, tried, and refused in one line."""

import copy
import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcphotoz.attacks import Passes, cross_entropy, pgd
from hpcphotoz.config import Model
from hpcphotoz.config import load as config
from hpcphotoz.errors import BadInput
from hpcphotoz.models.bins import RedshiftBins
from hpcphotoz.models.build import build
from hpcphotoz.models.factory import ImagesOnly, source_of
from tests.helpers import user_networks
from tests.helpers.paths import ROOT
from tests.helpers.user_networks import NAME

SCALE = (0.05, 0.02, 0.03)
FACTORIES = [f"{NAME}:{name}" for name in ("resnet", "vit", "mixer")]


@pytest.mark.parametrize("name", FACTORIES)
def test_logits_have_gradients_everywhere(name: str) -> None:
    network = build(Model(name=name, bins=30), stamp=16, scale=SCALE)
    images, ebv = torch.randn(4, 3, 16, 16, requires_grad=True), torch.rand(4)
    logits = network(images, ebv)
    assert logits.shape == (4, 30) and network.training
    logits.logsumexp(1).square().sum().backward()
    assert images.grad is not None and images.grad.abs().amax((2, 3)).min() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())
    uses_ebv = not torch.equal(network.eval()(images, ebv), network(images, ebv + 1))
    assert uses_ebv == (name == FACTORIES[0])


def test_a_strided_1x1_convolution_is_the_same_by_another_path() -> None:
    """Its gradient by the weights ends the process: oneDNN writes out of bounds for few channels."""
    ours = build(Model(name=FACTORIES[0], bins=30), stamp=17, scale=SCALE)
    theirs = user_networks.resnet(3, 17, 30, SCALE)
    theirs.load_state_dict(ours.state_dict())
    strides = [[block.skip.stride for block in network.blocks] for network in (ours, theirs)]  # type: ignore
    assert strides == [[(1, 1), (1, 1)], [(2, 2), (2, 2)]]
    images, ebv = torch.randn(4, 3, 17, 17, requires_grad=True), torch.rand(4)
    found = []
    for network in (ours, copy.deepcopy(ours), theirs):
        logits = network(images, ebv)
        wanted = [images, *network.parameters()]
        found.append([logits, *torch.autograd.grad(logits.square().sum(), wanted)])
    for one, copied, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert torch.equal(one, copied)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="limits the instructions of x86")
def test_training_survives_few_channels_on_cpus_with_avx2_alone() -> None:
    lines = [
        "import torch",
        "from hpcphotoz.config import Model",
        "from hpcphotoz.models.build import build",
        f"network = build(Model(name='{FACTORIES[0]}', bins=30), stamp=64, scale=(0.1,) * 5)",
        "network.to(memory_format=torch.channels_last)",
        "images = torch.randn(16, 5, 64, 64).contiguous(memory_format=torch.channels_last)",
        "for _ in range(4): network(images, torch.zeros(16)).square().sum().backward()",
        "print('survived')",
    ]
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**os.environ, **limits},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "survived\n", (done.returncode, done.stderr[-2000:])


def test_options_reach_the_factory_and_the_trial_changes_no_statistic() -> None:
    network = build(Model(name=FACTORIES[0], bins=30, options={"width": 3}), stamp=16, scale=SCALE)
    assert isinstance(network, user_networks.ResNet) and network.head.in_features == 2 * 3 + 1
    fresh = nn.BatchNorm2d(3).state_dict()
    norm = network.blocks[0].norm1.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(norm[name], fresh[name]) for name in fresh)


@pytest.mark.parametrize(
    ("forward", "takes_ebv"),
    [
        (lambda images, ebv: images, True),
        (lambda x, extinction: x, True),
        (lambda images, ebv=None: images, True),
        (lambda images, *ebv: images, True),
        (lambda images: images, False),
        (lambda images, mask=None: images, False),
        (lambda *anything, **more: anything[0], False),
    ],
)
def test_whether_a_network_takes_ebv_is_seen_from_its_signature(
    forward: Callable[..., Tensor], takes_ebv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def factory(bands: int, stamp: int, bins: int, scale: tuple[float, ...]) -> nn.Module:
        head = nn.Linear(bands * stamp * stamp, bins)
        network = nn.Module()
        network.add_module("head", head)

        def counted(*arguments: Tensor) -> Tensor:
            given.append(len(arguments))
            out: Tensor = head(forward(*arguments).flatten(1))
            return out

        counted.__signature__ = inspect_signature(forward)  # type: ignore[attr-defined]
        network.forward = counted
        return network

    monkeypatch.setattr(user_networks, "own", factory, raising=False)
    build(Model(name=f"{NAME}:own", bins=5), stamp=4, scale=SCALE)
    assert given == [2 if takes_ebv else 1]


def inspect_signature(function: Callable[..., Any]) -> Any:
    import inspect

    return inspect.signature(function)


def _linear(bands: int, stamp: int, bins: int, scale: tuple[float, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(bands * stamp * stamp, bins + 1))


class _Views(nn.Module):
    def __init__(self, bands: int, stamp: int, bins: int, scale: tuple[float, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(bands * stamp * stamp, bins)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images.view(len(images), -1))
        return out


class _Changed(_Views):
    """A network whose logits are made by `how` from a good network's."""

    def __init__(self, how: str, **given: Any) -> None:
        super().__init__(**given)
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "in place":
            images.mul_(2.0)
        if self.how == "data":
            images.data.add_(1.0)
        logits: Tensor = self.head((images.detach() if self.how == "detached" else images).flatten(1))
        if self.how == "no_grad":
            return logits.detach()
        if self.how == "two rows":
            return logits[:2]
        return logits.log() if self.how == "log" else logits


def _changed(how: str) -> Callable[..., nn.Module]:
    return lambda **given: _Changed(how, **given)


def _exits(**_: object) -> nn.Module:
    raise SystemExit(3)


def _wide(bands: int, stamp: int, bins: int, scale: tuple[float, ...], width: int, dim: int = 3) -> nn.Module:
    return _Views(bands, stamp, bins, scale)


class _TakesThree(_Views):
    def forward(self, images: Tensor, ebv: Tensor, redshift: Tensor) -> Tensor:  # type: ignore[override]
        return images


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (_linear, r"gives torch.float32 \(3, 6\) for 3 images: want logits of shape \(3, 5\)"),
        (_Views, r"channels_last memory order fails: RuntimeError: view size .* \(.*test_factory.py, line"),
        (_TakesThree, r"its forward takes images, ebv, redshift: want forward\(self, images, ebv\) or"),
        (lambda **_: nn.Flatten(), "want logits"),
        (lambda **_: 3, "the factory gives a int: want a torch.nn.Module"),
        (lambda bands: nn.Flatten(), r"\(.*test_factory.py\) takes no 'stamp': it is called with bands"),
        (_changed("in place"), "its forward changes the images in place"),
        (_changed("data"), "its forward changes the images in place"),
        (_changed("detached"), "no gradient of the logits reaches the images"),
        (_changed("no_grad"), "no gradient of the logits reaches the images"),
        (_changed("two rows"), r"gives torch.float32 \(2, 5\) for 3 images"),
        (_changed("log"), "gives NaN or infinite logits"),
        (_exits, r"the factory fails: SystemExit: 3 \(.*test_factory.py, line"),
        (_wide, r"model.options: .*test_factory.py\) wants 'width' too"),
        ("text", "own is a str: want a function or class"),
    ],
)
def test_what_is_no_network_is_refused(factory: object, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_networks, "own", factory, raising=False)
    with pytest.raises(BadInput, match=says) as refused:
        build(Model(name=f"{NAME}:own", bins=5), stamp=4, scale=SCALE)
    assert "\n" not in str(refused.value)


def test_options_that_the_factory_does_not_take_are_refused_by_name() -> None:
    says = r"model.options: the factory of .*user_networks.py\) takes no 'widht' \(did you mean width\?\)$"
    with pytest.raises(BadInput, match=says):
        build(Model(name=FACTORIES[0], options={"widht": 8}), stamp=4, scale=SCALE)


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (None, "absent_package.net:make", "there is no module absent_package here: .*PYTHONPATH"),
        ("", "own_module:make", "own_module holds no make: give a function or class of it"),
        ("import nothing_here", "own_module:make", "cannot import own_module: ModuleNotFoundError: .*line 1"),
        ("x = 1\nx = 1 / 0", "own_module:make", "cannot import own_module: ZeroDivisionError: .*line 2"),
        ("def f(:", "own_module:make", "cannot import own_module: SyntaxError: .*own_module.py, line 1"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_its_place(
    text: str | None, name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "own_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    with pytest.raises(BadInput, match=says) as refused:
        build(Model(name=name), stamp=4, scale=SCALE)
    assert "\n" not in str(refused.value)
    sys.modules.pop("own_module", None)


def test_names_and_options_of_the_configuration(tmp_path: Path) -> None:
    for name in ("resnet", "a.b", ":make", "a:", "a b:c", "timm:", "timm:a b", "timm:hf-hub:a/b", "1a:b"):
        with pytest.raises(BadInput, match="must be compact, cnn, inception, package.module:factory or timm"):
            config.configure("test", name=name)
    given = {"model.name": FACTORIES[0], "model.options": "{width = 4, folder = 'a', x = [1, 2.5], y = true}"}
    found = config.load("standard", given)
    assert found.model.options == {"width": 4, "folder": "a", "x": [1, 2.5], "y": True}
    (tmp_path / "c.toml").write_text(config.to_toml(found))
    assert config.load(str(tmp_path / "c.toml")) == found
    for text, says in (
        ("4", "must be a table"),
        ("{a = 1}\nb = 2", "must be a table"),
        ("{bands = 3}", "'bands' is given to the factory anyway"),
        ("{'a b' = 3}", "'a b' cannot be the name of an argument"),
    ):
        with pytest.raises(BadInput, match=says):
            config.load("standard", {**given, "model.options": text})
    with pytest.raises(
        BadInput, match="options are for package.module:factory and timm:NAME, not for compact"
    ):
        config.load("standard", {"model.options": "{a = 1}"})


@pytest.mark.parametrize("name", [FACTORIES[0], "timm:resnet18"])
@pytest.mark.parametrize(
    ("key", "text"), [("width", "33"), ("relu_logits", "true"), ("normalisation", "sqrt")]
)
def test_an_option_that_the_network_does_not_take_is_refused(
    name: str, key: str, text: str, tmp_path: Path
) -> None:
    given = {"model.name": name, f"model.{key}": text}
    file = tmp_path / "c.toml"
    file.write_text(f"[model]\nname = '{name}'\n{key} = {text if key != 'normalisation' else repr(text)}\n")
    if name.startswith("timm:") and key == "normalisation":  # which comes before it
        assert config.load("standard", given).model.normalisation == "sqrt"
        return
    says = f"{key} {text.capitalize() if text == 'true' else text} has no effect on {name}: leave it out"
    for source, overrides in (("standard", given), (str(file), {}), (str(file), {"model.name": name})):
        with pytest.raises(BadInput, match=says) as refused:
            config.load(source, overrides)
        assert "\n" not in str(refused.value) and str(refused.value).startswith(source)


def test_another_network_on_the_command_line_leaves_the_options_of_the_recipes_network() -> None:
    default = Model()
    for recipe in config.recipes():
        found = config.load(recipe, {"model.name": FACTORIES[0], "model.width": str(default.width)}).model
        assert (found.width, found.normalisation) == (default.width, default.normalisation)
        assert config.load(recipe, {"model.name": "compact"}).model.width == config.load(recipe).model.width


@pytest.mark.parametrize(
    "key",
    [
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "checkpoint_path",
        "cache_dir",
    ],
)
def test_options_of_timm_that_load_weights_are_refused(key: str) -> None:
    given = {"model.name": "timm:resnet18", "model.options": f"{{{key} = 'x'}}"}
    says = f"options: '{key}' loads weights, which no option may do: call timm.create_model in a factory"
    with pytest.raises(BadInput, match=says):
        config.load("standard", given)
    assert config.load("standard", {**given, "model.name": FACTORIES[0]}).model.options == {key: "x"}


def test_the_source_is_the_file_of_the_factory() -> None:
    source = source_of(Model(name=FACTORIES[0]))
    assert source is not None and source.file == Path(user_networks.__file__).resolve()
    assert source.text == source.file.read_bytes() and len(source.sha256) == 64
    assert source_of(Model()) is None and source_of(Model(name="timm:resnet18")) is None


def test_a_network_without_ebv_is_attacked_in_bfloat16_as_any_foreign_module() -> None:
    network = build(Model(name=FACTORIES[2], bins=20), stamp=16, scale=SCALE)
    assert isinstance(network, ImagesOnly)
    images, ebv, z = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.tensor([0.1, 0.2])
    given = network, images, ebv, z, torch.full((3,), 0.1)
    loss = cross_entropy(RedshiftBins(20, 0.0, 0.4))
    ours = pgd(*given, loss=loss, steps=2, passes=Passes(autocast=torch.bfloat16))
    theirs = pgd(network.network, images, None, *given[3:], loss=loss, steps=2,
                 passes=Passes(autocast=torch.bfloat16))  # fmt: skip
    assert torch.equal(ours, theirs) and not torch.equal(ours, images)


def test_timm_networks_get_bands_bins_and_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []

    def create_model(name: str, in_chans: int, num_classes: int, **options: object) -> nn.Module:
        made.append({"name": name, **options})
        return nn.Sequential(nn.Conv2d(in_chans, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    fake: Any = types.ModuleType("timm")
    fake.create_model, fake.__version__ = create_model, "1.0.31"
    fake.is_model = lambda name: name in ("resnet18", "vit_tiny")
    fake.list_models = lambda pattern: ["resnet18"]
    fake.get_pretrained_cfg = lambda name: types.SimpleNamespace(fixed_input_size=name == "vit_tiny")
    monkeypatch.setitem(sys.modules, "timm", fake)
    for name in ("resnet18", "vit_tiny"):
        network = build(Model(name=f"timm:{name}", bins=7, options={"drop_rate": 0.1}), stamp=9, scale=SCALE)
        assert network(torch.randn(2, 3, 9, 9), torch.rand(2)).shape == (2, 7)
    assert made == [
        {"name": "resnet18", "drop_rate": 0.1},
        {"name": "vit_tiny", "drop_rate": 0.1, "img_size": 9},
    ]
    # Normalised first: a flux scaled with its softening gives the same logits.
    wide = build(Model(name="timm:resnet18", bins=7), stamp=9, scale=tuple(10 * s for s in SCALE))
    wide.load_state_dict(
        {**network.state_dict(), "network.0.scale": 10 * network.state_dict()["network.0.scale"]}
    )
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(wide(10 * images, torch.zeros(2)), network(images, torch.zeros(2)))
    with pytest.raises(BadInput, match="timm 1.0.31 has no resnet19; it has resnet18"):
        build(Model(name="timm:resnet19"), stamp=9, scale=SCALE)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadInput, match=r"networks of timm need `pip install 'hpcphotoz\[timm\]'`"):
        build(Model(name="timm:resnet18"), stamp=9, scale=SCALE)


def test_timm_beside_another_build_of_torchvision_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(
        BadInput, match=r"cannot import timm: RuntimeError: operator torchvision::nms .*build"
    ):
        build(Model(name="timm:resnet18"), stamp=9, scale=SCALE)
