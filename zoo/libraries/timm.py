"""Vision models of ``timm`` at other depths of their stages."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from zoo.depth.stack import Depths, Pair, Rule, Stack
from zoo.libraries.library import FOUR, ONE, batch, module, stack


def _import(name: str) -> Any:
    return module(f"timm.{name}")


def _image(size: int) -> Tensor:
    return batch(3, size, size)


def _deep(
    name: str,
    maker: Callable[[], Callable[..., Any]],
    pairs: Any,
    size: int = 32,
    depth: str = "depths",
    single: bool = False,
    rule: Rule | None = None,
    **settings: Any,
) -> Stack:
    """What ``maker`` imports, with one setting for the depths; a ``single`` one is a number."""

    def build(depths: Depths) -> nn.Module:
        own = {depth: depths[0] if single else depths}
        return cast(nn.Module, maker()(num_classes=3, **own, **settings))

    return _configured(name, build, pairs, size, rule)


def _timm(name: str, where: str, kind: str, pairs: Any, size: int = 32, **settings: Any) -> Stack:
    """A class of a module of timm."""
    return _deep(name, lambda: getattr(_import(f"models.{where}"), kind), pairs, size, **settings)


def _named(name: str, model: str, pairs: Any, size: int = 32, **settings: Any) -> Stack:
    """A registered model of timm."""
    return _deep(
        name, lambda: partial(_import("models").create_model, model), pairs, size, **settings
    )


def _configured(
    name: str, build: Any, pairs: Any, size: int = 32, rule: Rule | None = None
) -> Stack:
    return stack(name, "timm", build, lambda: _image(size), pairs, rule)


def _in_a_row(pair: Pair) -> dict[str, str]:
    """The rule for stages whose blocks are in one list, of depths that are multiples."""
    found = {}
    starts = [0, 0]
    for n, m in zip(*pair, strict=True):
        for j in range(m):
            found[f"blocks.{starts[1] + j}"] = f"blocks.{starts[0] + j * n // m}"
        starts = [starts[0] + n, starts[1] + m]
    return found


def _coatnet(kinds: tuple[Any, ...]) -> Any:
    def build(depths: Depths) -> nn.Module:
        m = _import("models.maxxvit")
        cfg = m.MaxxVitCfg(
            embed_dim=(16, 16, 32, 32),
            depths=depths,
            block_type=kinds,
            stem_width=8,
            conv_cfg=m.MaxxVitConvCfg(),
            transformer_cfg=m.MaxxVitTransformerCfg(dim_head=8, window_size=(1, 1)),
        )
        return m.MaxxVit(cfg, img_size=32, num_classes=3)  # type: ignore[no-any-return]

    return build


def _crossvit(depths: Depths) -> nn.Module:
    m = _import("models.crossvit")
    return m.CrossVit(  # type: ignore[no-any-return]
        img_size=32,
        img_scale=(1.0, 1.0),
        patch_size=(8, 16),
        embed_dim=(16, 32),
        num_heads=(2, 2),
        mlp_ratio=(2.0, 2.0, 1.0),
        depth=[[1, depths[1], 0]] * depths[0],
        num_classes=3,
    )


def _cait(depths: Depths) -> nn.Module:
    m = _import("models.cait")
    return m.Cait(  # type: ignore[no-any-return]
        img_size=32,
        patch_size=8,
        embed_dim=16,
        num_heads=2,
        num_classes=3,
        depth=depths[0],
        depth_token_only=depths[1],
    )


def _xcit(depths: Depths) -> nn.Module:
    m = _import("models.xcit")
    return m.Xcit(  # type: ignore[no-any-return]
        img_size=32,
        patch_size=8,
        embed_dim=16,
        num_heads=2,
        num_classes=3,
        eta=1.0,
        depth=depths[0],
        cls_attn_layers=depths[1],
    )


def _nfnet(depths: Depths) -> nn.Module:
    m = _import("models.nfnet")
    cfg = m.NfCfg(
        depths=depths,
        channels=(16, 16, 32, 32),
        stem_type="3x3",
        stem_chs=8,
        group_size=8,
        num_features=32,
        act_layer="silu",
    )
    return m.NormFreeNet(cfg, num_classes=3)  # type: ignore[no-any-return]


def _efficientnet(depths: Depths) -> nn.Module:
    b = _import("models._efficientnet_builder")
    e = _import("models.efficientnet")
    arch = [
        [f"ds_r{depths[0]}_k3_s1_e1_c8_se0.25"],
        [f"ir_r{depths[1]}_k3_s2_e3_c16_se0.25"],
        [f"ir_r{depths[2]}_k5_s2_e3_c16_se0.25"],
        [f"ir_r{depths[3]}_k3_s2_e3_c24_se0.25"],
    ]
    return e.EfficientNet(  # type: ignore[no-any-return]
        block_args=b.decode_arch_def(arch),
        num_features=32,
        stem_size=8,
        num_classes=3,
        round_chs_fn=lambda c: c,
    )


WIDE4 = (16, 16, 32, 32)
VIT: dict[str, Any] = {
    "depth": "depth",
    "single": True,
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "num_heads": 2,
}
FIRST = [((1, 1, 1, 1), (1, 2, 3, 1)), ((1, 1, 1, 1), (2, 1, 2, 2))]

STACKS = [
    _timm(
        "hiera",
        "hiera",
        "Hiera",
        [((1, 1), (1, 2)), ((1, 1), (2, 4)), ((1, 1), (2, 3))],
        rule=_in_a_row,
        depth="stages",
        img_size=(32, 32),
        embed_dim=16,
        num_heads=1,
        q_pool=1,
        q_stride=(2, 2),
        mask_unit_size=(4, 4),
        mask_unit_attn=(True, False),
        patch_stride=(4, 4),
    ),
    _named(
        "efficientvit-mit",
        "efficientvit_b0",
        [
            ((1, 1, 1, 1, 1), (1, 1, 2, 3, 1)),
            ((1, 1, 1, 2, 1), (1, 2, 2, 4, 2)),
            ((1, 2, 2, 2, 2), (1, 1, 3, 4, 2)),
        ],
        64,
        widths=(8, 8, 16, 16, 16),
        head_dim=8,
        head_widths=(16, 16),
    ),
    _named(
        "efficientvit-msra",
        "efficientvit_m0",
        [((1, 1, 1), (1, 2, 3)), ((1, 2, 2), (2, 3, 4))],
        64,
        img_size=64,
        depth="depth",
        embed_dim=(16, 32, 48),
        num_heads=(2, 2, 2),
    ),
    _configured("coatnet", _coatnet(("C", "C", "T", "T")), FOUR[2:]),
    _configured("maxvit", _coatnet(("M", "M", "M", "M")), FOUR),
    _timm("convnext", "convnext", "ConvNeXt", FOUR, dims=WIDE4),
    _timm("convnextv2", "convnext", "ConvNeXt", FOUR, dims=WIDE4, use_grn=True, ls_init_value=None),
    _timm(
        "swin",
        "swin_transformer",
        "SwinTransformer",
        [((1, 1), (2, 3)), ((1, 2), (2, 4)), ((2, 2), (2, 6))],
        img_size=32,
        embed_dim=8,
        num_heads=(1, 2),
        window_size=4,
    ),
    _timm(
        "swinv2",
        "swin_transformer_v2",
        "SwinTransformerV2",
        [((1, 1), (2, 3)), ((1, 2), (2, 4)), ((2, 2), (2, 6))],
        img_size=32,
        embed_dim=8,
        num_heads=(1, 2),
        window_size=4,
    ),
    _named("resnet-basic", "resnet18", FIRST, depth="layers", channels=(8, 8, 16, 16)),
    _named("resnet-bottleneck", "resnet50", FIRST, depth="layers", channels=(8, 8, 16, 16)),
    _named("resnet-se", "seresnet50", FIRST, depth="layers", channels=(8, 8, 16, 16)),
    _named(
        "resnetv2", "resnetv2_50", FIRST, depth="layers", channels=(32, 32, 64, 64), stem_chs=16
    ),
    _timm(
        "mixer",
        "mlp_mixer",
        "MlpMixer",
        ONE,
        depth="num_blocks",
        single=True,
        img_size=32,
        patch_size=8,
        embed_dim=16,
    ),
    _configured("cait", _cait, [((1, 1), (2, 1)), ((2, 1), (4, 2)), ((2, 2), (3, 3))]),
    _configured("xcit", _xcit, [((1, 1), (2, 1)), ((2, 1), (4, 2)), ((2, 2), (3, 3))]),
    _configured(
        "crossvit",
        _crossvit,
        [((1, 1), (2, 1)), ((2, 1), (3, 1)), ((1, 1), (1, 2)), ((2, 2), (3, 4))],
    ),
    _configured("nfnet", _nfnet, FOUR),
    _configured("efficientnet", _efficientnet, FOUR),
    _timm(
        "vit",
        "vision_transformer",
        "VisionTransformer",
        ONE,
        **VIT,
    ),
    _timm(
        "vit-layerscale",
        "vision_transformer",
        "VisionTransformer",
        ONE,
        **VIT,
        init_values=0.1,
        qk_norm=True,
    ),
    _named(
        "vit-parallel",
        "vit_small_patch16_18x2_224",
        ONE,
        **VIT,
    ),
    _timm(
        "deit-distilled",
        "deit",
        "VisionTransformerDistilled",
        ONE,
        **VIT,
    ),
    _timm(
        "beit",
        "beit",
        "Beit",
        ONE,
        **VIT,
    ),
    _timm(
        "eva",
        "eva",
        "Eva",
        ONE,
        **VIT,
        swiglu_mlp=True,
        use_rot_pos_emb=True,
    ),
    _timm(
        "pvt-v2",
        "pvt_v2",
        "PyramidVisionTransformerV2",
        FOUR,
        embed_dims=WIDE4,
        num_heads=(1, 2, 2, 2),
    ),
    _timm("poolformer", "metaformer", "MetaFormer", FOUR, dims=WIDE4),
    _named(
        "levit",
        "levit_128s",
        [((1, 1, 1), (2, 3, 2)), ((2, 2, 2), (2, 4, 3))],
        64,
        img_size=64,
        depth="depth",
        embed_dim=(32, 48, 64),
        key_dim=8,
        num_heads=(2, 2, 2),
    ),
    _named(
        "twins-pcpvt",
        "twins_pcpvt_small",
        FOUR,
        64,
        img_size=64,
        embed_dims=WIDE4,
        num_heads=(1, 2, 2, 2),
    ),
    _timm(
        "convmixer",
        "convmixer",
        "ConvMixer",
        ONE,
        depth="depth",
        single=True,
        dim=16,
        kernel_size=3,
        patch_size=4,
    ),
    _timm("inception-next", "inception_next", "MetaNeXt", FOUR, dims=(32, 32, 64, 64)),
    _timm("focalnet", "focalnet", "FocalNet", FOUR, 64, embed_dim=8),
    _timm(
        "davit", "davit", "DaVit", FOUR, 64, embed_dims=WIDE4, num_heads=(1, 1, 2, 2), window_size=2
    ),
    _timm(
        "fastvit",
        "fastvit",
        "FastVit",
        FOUR,
        64,
        depth="layers",
        embed_dims=WIDE4,
        token_mixers=("repmixer",) * 3 + ("attention",),
    ),
    _named(
        "tnt",
        "tnt_s_legacy_patch16_224",
        ONE,
        32,
        depth="depth",
        single=True,
        img_size=32,
        embed_dim=16,
        inner_dim=8,
        num_heads_inner=2,
        num_heads_outer=2,
    ),
    _named(
        "pit",
        "pit_ti_224",
        [((1, 1, 1), (1, 2, 3)), ((2, 2, 2), (2, 3, 4))],
        64,
        img_size=64,
        patch_size=8,
        depth="depth",
        base_dims=(8, 8, 8),
        heads=(1, 2, 2),
    ),
    _named(
        "sequencer2d",
        "sequencer2d_s",
        [((1, 1, 1, 1), (2, 1, 2, 1)), ((2, 2, 2, 2), (2, 4, 3, 2))],
        64,
        img_size=64,
        depth="layers",
        embed_dims=(16, 16, 16, 16),
        hidden_sizes=(8, 8, 8, 8),
    ),
    _timm(
        "tiny-vit",
        "tiny_vit",
        "TinyVit",
        FOUR,
        64,
        embed_dims=(16, 16, 32, 32),
        num_heads=(1, 1, 2, 2),
        window_sizes=(4, 4, 2, 2),
    ),
    _timm("mambaout", "mambaout", "MambaOut", FOUR, 64, dims=WIDE4),
    _timm(
        "swiftformer", "swiftformer", "SwiftFormer", FOUR[2:], 64, depth="layers", embed_dims=WIDE4
    ),
    _timm("repvit", "repvit", "RepVit", FOUR, 64, depth="depth", embed_dim=WIDE4),
    _timm("starnet", "starnet", "StarNet", FOUR, 64, base_dim=8),
    _named(
        "visformer",
        "visformer_tiny",
        [((1, 1, 1), (1, 2, 3)), ((2, 2, 2), (2, 3, 4))],
        64,
        img_size=64,
        depth="depth",
        embed_dim=16,
        num_heads=2,
    ),
]
