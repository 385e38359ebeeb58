"""Shapes of a model at one number of parameters: the number is met, heads and widths divide, the rest stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.calculators import params
from dlcalc.errors import DlcalcError
from dlcalc.search.designs import designs_of
from dlcalc.search.shapes import Shapes
from dlcalc.search.variables import Choice
from dlcalc.specs.design import DesignSpec, ShapeSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import KnobRanges
from tests.scenarios import scenario

SPANS = {
    "llama3-70b": {"n_layers": {"low": 32, "high": 160}, "ffn_ratio": {"low": 2.0, "high": 6.0}},
    "llama3-8b": {"n_layers": [16, 24, 32, 48], "hidden_size": {"low": 2048, "high": 6144}},
    "gpt3-175b": {"hidden_size": [10240, 12288, 16384], "head_dim": [64, 128]},
    "qwen3-32b": {"n_layers": {"low": 24, "high": 80}, "n_kv_heads": [4, 8, 16]},
    "qwen3-235b-a22b": {"n_layers": [48, 64, 94], "n_experts": [64, 128, 256], "top_k": [4, 8, 16]},
    "deepseek-v3": {"n_layers": [30, 61, 80], "n_experts": [128, 256, 512]},
}


def shapes(name, **changes):
    return Shapes(load_model(name), ShapeSpec.model_validate({**SPANS[name], **changes}))


def points(family):
    """Any point that a sampler may ask for."""

    def values(variable):
        if isinstance(variable, Choice):
            return st.sampled_from(variable.values)
        if variable.whole:
            return st.integers(int(variable.low), int(variable.high))
        return st.floats(variable.low, variable.high)

    return st.fixed_dictionaries({variable.name: values(variable) for variable in family.variables})


@settings(deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", SPANS)
def test_every_shape_has_the_number_of_parameters(name, data):
    """Or is refused; what is asked for is kept, and what ranks divide can be divided."""
    family = shapes(name)
    point = data.draw(points(family))
    try:
        shape = family.at(point, "shape")
    except DlcalcError:
        return
    assert abs(params.total_params(shape) / params.total_params(load_model(name)) - 1) <= 0.01
    assert shape.n_heads % math.lcm(8, shape.n_kv_heads if shape.n_kv_heads < shape.n_heads else 1) == 0
    assert shape.hidden_size % 128 == 0
    if family.heads_fill:
        assert shape.n_heads * shape.head_dim == shape.hidden_size
    width = shape.expert_ffn_hidden_size if shape.is_moe else shape.ffn_hidden_size
    assert width % (32 if shape.is_moe else 128) == 0
    if "ffn_ratio" in point:
        assert 2.0 <= width / shape.hidden_size <= 6.0
    for name_, value in point.items():
        if name_ != "ffn_ratio":
            assert getattr(shape, name_) == value
    dimensions = {"n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "ffn_hidden_size", "n_experts"}
    dimensions |= {"top_k", "expert_ffn_hidden_size", "shared_ffn_hidden_size", "name", "aliases", "source"}
    assert shape.model_dump(exclude=dimensions) == load_model(name).model_dump(exclude=dimensions)


@pytest.mark.parametrize("name", SPANS)
def test_most_points_have_a_shape(name):
    """A sampler is not to spend its trials on points that stand for nothing."""
    family = shapes(name)
    found = tried = 0
    for step in range(40):
        point = {}
        for place, variable in enumerate(family.variables):
            share = ((step + 1) * (0.618, 0.414, 0.732)[place]) % 1.0
            if isinstance(variable, Choice):
                point[variable.name] = variable.values[int(share * len(variable.values))]
            else:
                value = variable.low + share * (variable.high - variable.low)
                point[variable.name] = round(value) if variable.whole else value
        tried += 1
        try:
            family.at(point, "shape")
            found += 1
        except DlcalcError:
            continue
    assert found >= 0.8 * tried


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "gpt3-175b", "deepseek-v3", "qwen3-235b-a22b"])
def test_a_model_is_among_its_own_shapes(name):
    model = load_model(name)
    for varied, decided in (("n_layers", "hidden_size"), ("hidden_size", "n_layers")):
        own = getattr(model, varied)
        family = Shapes(model, ShapeSpec.model_validate({varied: [own, 2 * own]}))
        assert family.decided == decided
        same = family.at({varied: own}, model.name)
        assert same.model_dump(exclude={"source", "aliases"}) == model.model_dump(exclude={"source", "aliases"})


def test_active_parameters_can_be_held_instead():
    model = load_model("qwen3-235b-a22b")
    family = Shapes(model, ShapeSpec(n_experts=(64, 128), top_k=(4, 8), at_active_parameters=22e9))
    shape = family.at({"n_experts": 64, "top_k": 4}, "shape")
    assert params.active_params(shape) == pytest.approx(22e9, rel=0.01)
    assert (
        shape.expert_ffn_hidden_size > model.expert_ffn_hidden_size
    )  # half as many take part, each about as wide again


def test_the_last_dimension_is_solved_by_hand():
    """2 layers, hidden 1024, vocabulary 1,000, no biases: 2 x 1000 x 1024 + 2 x (4 x 1024^2 + 3 x 1024 x w + norms)."""
    model = ModelSpec(
        name="small",
        n_layers=2,
        hidden_size=1024,
        n_heads=8,
        n_kv_heads=8,
        head_dim=128,
        ffn_hidden_size=4096,
        vocab_size=1000,
    )
    norms = (2 * 2 + 1) * 1024
    wanted = 2 * 1000 * 1024 + 2 * (4 * 1024**2 + 3 * 1024 * 2560) + norms
    family = Shapes(model, ShapeSpec(at_parameters=float(wanted), n_layers=(2, 4), hidden_size=(1024.0, 2048.0)))
    assert family.at({"n_layers": 2, "hidden_size": 1024}, "shape").ffn_hidden_size == 2560


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("llama3-8b", {"n_experts": (8, 16)}, "n_experts: llama3-8b has no experts"),
        ("llama3-8b", {"n_layers": (16, 32), "at_active_parameters": 8e9}, "at_active_parameters: llama3-8b has no"),
        ("deepseek-v3", {"head_dim": (64, 128)}, "head_dim: deepseek-v3 has latent attention"),
        ("llama3-8b", {"hidden_size": {"low": 4000, "high": 4200}}, "holds 1 multiples of 1024; at least 2"),
    ],
)
def test_what_a_model_cannot_vary_is_named(name, spec, said):
    with pytest.raises(DlcalcError, match="search: design: model: ") as caught:
        assert Shapes(load_model(name), ShapeSpec.model_validate(spec)).variables
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "point", "said"),
    [
        ({"hidden_size": [4096, 4224]}, {"hidden_size": 4224}, "hidden_size = 4224 is no multiple of 1024"),
        (
            {"n_layers": [2, 32], "hidden_size": [1024, 4096]},
            {"n_layers": 32, "hidden_size": 20480},
            "no MLP brings it",
        ),
        ({"n_layers": [32, 64], "tolerance": 1e-6}, {"n_layers": 64}, "within 0.0001 % of 8.03e+09 parameters"),
    ],
)
def test_a_point_without_a_shape_is_refused_with_a_reason(spec, point, said):
    with pytest.raises(DlcalcError) as caught:
        Shapes(load_model("llama3-8b"), ShapeSpec.model_validate(spec)).at(point, "shape")
    assert said in str(caught.value)


def test_a_shape_has_the_plans_that_it_can_have():
    """Another depth has other pipelines, another number of heads other tensor-parallel degrees."""
    base = scenario("dense")
    spec = DesignSpec(model=ShapeSpec(n_layers=(24.0, 48.0)))
    made = designs_of(base, spec, KnobRanges()).made({"n_layers": 24}, "design 3")
    assert made.name == f"{base.name}, design 3"
    assert made.model.name == "llama3-8b_design_3"
    assert set(made.axes[0]["pp"]) == {1, 2, 4, 8, 16}
    assert 24 % max(made.axes[2]["vpp"]) == 0 or 26 % max(made.axes[2]["vpp"]) == 0
    assert made.hardware == base.hardware


def test_machine_and_shape_can_be_designed_together():
    base = scenario("dense")
    spec = DesignSpec(hbm_gib=(80.0, 160.0), model=ShapeSpec(n_layers=(24.0, 48.0)))
    family = designs_of(base, spec, KnobRanges())
    assert family.kind == "machines and shapes"
    made = family.made({"hbm_gib": 160.0, "n_layers": 48}, "design 0")
    assert (made.hardware.device.hbm_gib.value, made.model.n_layers) == (160.0, 48)
    assert family.described(made, {"hbm_gib": 160.0})["n_layers"] == 48
