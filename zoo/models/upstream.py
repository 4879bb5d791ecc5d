"""Where published heads come from: address, file, licence and the sha256 that was tested. Data only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Hub ids of OpenAI's CLIP, by the end of a head's architecture.
_TOWERS = {
    "vit_b32": "openai/clip-vit-base-patch32",
    "vit_b16": "openai/clip-vit-base-patch16",
    "vit_l14": "openai/clip-vit-large-patch14",
}


@dataclass(frozen=True)
class Upstream:
    """One published head: `zoo import ARCHITECTURE FILE` turns the file into a release of `model`.

    `sha256` is the hash of the tested file, converted to safetensors. `tower` is the Hub id of the CLIP that the head
    was trained on. `rename` maps tensors of the file to tensors of the head. Tensors that begin with one of `ignored`
    belong to other models and are skipped. `note` is what a user must know before using the weights.
    """

    model: str
    url: str
    file: str
    licence: str
    sha256: str
    tower: str
    rename: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    note: str = ""

    @property
    def source(self) -> str:
        """Address and file, for a card."""
        return f"{self.url} ({self.file})"


_LAION = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector"


def _q16(model: str, size: str, folder: str) -> Upstream:
    return Upstream(
        model,
        "https://github.com/ml-research/Q16",
        f"data/{folder}/prompts.p",
        "MIT",
        # One file for the three sizes: vit_b16 and vit_b32 [2, 512], vit_l14 [2, 768].
        "bf02b12ed304565cfc03eb3dae1a933f88503b47161ab778a176dde28e27b0cf",
        _TOWERS[size],
        rename={size: "prompts"},
        ignored=tuple(other for other in _TOWERS if other != size),
    )


UPSTREAM: dict[str, Upstream] = {
    "laion_nsfw_vit_l14": Upstream(
        "laion_nsfw_vit_l14.published",
        _LAION,
        "models/clip_ViT-L-14_openai_binary_nsfw_head.pth",
        "MIT",
        "fbd76a2d058e0eac292492b2271e469728e7c80e2f70e21d17a87552abd9e625",
        _TOWERS["vit_l14"],
    ),
    "laion_nsfw_vit_b32": Upstream(
        "laion_nsfw_vit_b32.published",
        _LAION,
        "models/clip_ViT-B-32_openai_binary_nsfw_head.pth",
        "MIT",
        "c9907793c39371b560bc85ad55407ac945e11f3b94b88dba8b6c5a771c64b16c",
        _TOWERS["vit_b32"],
    ),
    "safety_checker_vit_l14": Upstream(
        "safety_checker_vit_l14.compvis",
        "https://huggingface.co/CompVis/stable-diffusion-safety-checker",
        "its four tensors beside the CLIP tower",
        "CreativeML OpenRAIL-M",
        "9e1ffb603b4c21cdc6492db1e5384b58293285ec084b87f6300ffea01a3b67e9",
        _TOWERS["vit_l14"],
        ignored=("vision_model.", "visual_projection."),
    ),
    "multihead_vit_l14": Upstream(
        "multihead_vit_l14.unsafe_diffusion",
        "https://github.com/YitingQu/unsafe-diffusion",
        "checkpoints/multi-headed/*.pt",
        "none given upstream: do not redistribute",
        "ddb4edff959197f1b972455873f16ecb18cbdfc418f2071a6c7a36bfd8bf16b1",
        _TOWERS["vit_l14"],
        note="Upstream has no licence file, so neither these weights nor a release made from them may be passed on.",
    ),
    "q16_vit_b16": _q16("q16_vit_b16.prompts", "vit_b16", "ViT-B-16"),
    "q16_vit_b32": _q16("q16_vit_b32.prompts", "vit_b32", "ViT-B-32"),
    "q16_vit_l14": _q16("q16_vit_l14.prompts", "vit_l14", "ViT-L-14"),
}

#: What can be imported, and the options that each kind takes.
KINDS: dict[str, tuple[str, ...]] = {
    "nsfwjs": (),
    "clip": ("name", "projection_from", "hparams"),
    **dict.fromkeys(UPSTREAM, ("tower", "sha256", "hparams")),
}
