"""Everything that depends on a model_type: what transformers 5.23 has in a model's code, not in its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Mrope:
    """How the axes of a model's positions (time, height, width) are distributed over its pairs."""

    sections: tuple[int, ...] | None  # mrope_section if the configuration has none
    # The order of the pairs that mrope_section counts. "blocks": all pairs of one axis, then those of the next.
    # "interleaved": the axes alternate (frequencies.mrope_pair_axis). "spatial first": height and width alternate, then
    # time. "channels": the two channels of a pair follow different axes, which no table with an entry per pair can
    # express.
    convention: Literal["blocks", "interleaved", "spatial first", "channels"]


@dataclass(frozen=True)
class ModelFacts:
    """The defaults and exceptions of one model_type. A model without exceptions has the defaults of this class."""

    base: float | None = None  # rope_theta if the configuration has none
    partial: float | None = None  # partial_rotary_factor if the configuration has none
    null_partial: bool = False  # a null partial_rotary_factor counts as absent
    head_dim: int | None = None  # if the configuration has none, and hidden_size does not imply it
    rotary_dim: int | None = None  # if the configuration has none
    whole_head: bool = False  # head_dim counts all channels of a head, of which qk_rope_head_dim rotate
    local_base: float | None = None  # rope_local_base_freq if the configuration has none
    plain_local: bool = False  # rope_scaling is for "full_attention" only: "sliding_attention" has the plain rotation
    scaled: bool = False  # the default rope_parameters scale the rotation, so the configuration must give them
    mrope: Mrope | None = None  # None: positions have one axis, unless the configuration has mrope_section
    axial: Mapping[str, Any] | None = None  # keywords of frequencies.axial; None: the rotation is not axial
    width_key: str | None = None  # the key to divide by the number of heads, instead of hidden_size
    unused_rotary_dim: bool = False  # the configuration has a rotary_dim that transformers does not read


_QWEN2_VL, _GLM4V = Mrope((16, 24, 24), "blocks"), Mrope((8, 12, 12), "blocks")
_QWEN3_VL, _QWEN3_5 = Mrope((24, 20, 20), "interleaved"), Mrope((11, 11, 10), "interleaved")
# (model types, facts that they share). A model type has the facts of all lines that name it.
_TABLE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama falcon gemma gemma2 mistral", {"base": 10000.0}),
    ("gptj codegen", {"base": 10000.0}),
    ("gpt_neox", {"base": 10000.0, "partial": 0.25}),
    ("stablelm qwen3_next qwen3_5_text qwen3_5_moe_text", {"partial": 0.25}),
    ("glm glm4 glm4_moe glm4v_moe_text glmasr_encoder persimmon phi nemotron recurrent_gemma bamba", {"partial": 0.5}),
    ("moonshine", {"partial": 0.9}),
    ("mimo_v2_flash", {"partial": 0.334}),
    ("qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text", {"mrope": _QWEN2_VL}),
    ("qwen2_5_omni_text qwen2_5_omni_talker paddleocr_vl_text", {"mrope": _QWEN2_VL}),
    ("glm4v_text glm4v_moe_text glm_image_text glm_ocr_text", {"mrope": _GLM4V}),
    ("qwen3_vl_text qwen3_vl_moe_text qwen3_omni_moe_text", {"mrope": _QWEN3_VL}),
    ("cosmos3_edge_text cohere_compass_text", {"mrope": _QWEN3_VL}),
    ("qwen3_5_text qwen3_5_moe_text qwen4_exp_text", {"mrope": _QWEN3_5}),
    ("ernie4_5_vl_moe_text", {"mrope": Mrope((22, 22, 20), "spatial first")}),
    ("minimax_m3_vl_text", {"unused_rotary_dim": True}),
    ("hunyuan_vl_text", {"mrope": Mrope(None, "channels")}),
    ("neomme", {"axial": {"divide": True, "alternate": True}}),
    ("pixtral", {"axial": {"divide": True}}),
    ("kimi_k25_vision", {"axial": {"alternate": True, "axis_order": (1, 0)}}),
    ("inkling2_vision step3p5_vision", {"axial": {"axis_order": (1, 0)}}),
    ("minimax_m3_vl_vision", {"axial": {"axes": 3}}),
    ("eomt_dinov3 dinov3_vit", {"axial": {}, "base": 100.0}),
    ("qwen2_vl_vision", {"axial": {}, "base": 10000.0, "width_key": "embed_dim"}),
    ("qwen2_5_vl_vision qwen3_vl_vision qwen3_vl_moe_vision qwen3_5_vision", {"axial": {}, "base": 10000.0}),
    ("afmoe beam cohere2_moe cosmos3_edge_text cwm dia_decoder dia_encoder ernie4_5 flint glm", {"head_dim": 128}),
    ("glm4 helium higgs_audio_v2 hrm_text hy_v3 internlm3 iquestcoder jetmoe kolibri1 laguna", {"head_dim": 128}),
    ("lfm3 llama4_text mellum minimax_m2 minimax_m3_vl_text ministral3 molmo2_text", {"head_dim": 128}),
    ("muse_glimmer_assistant muse_glimmer_text paddleocr_vl_text pe_audio_encoder", {"head_dim": 128}),
    ("pe_audio_video_encoder pe_video_encoder qwen3 qwen3_omni_moe_talker_code_predictor", {"head_dim": 128}),
    ("qwen3_vl_text seed_oss solar_open step3p5 zaya", {"head_dim": 128}),
    ("axk1 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 gemma4_vision glm4_moe_lite", {"head_dim": 64}),
    ("glm_moe_dsa gpt_oss hy_v4 longcat_flash mistral_large4_text muse_spark_text neomme", {"head_dim": 64}),
    ("neucodec openai_privacy_filter qwen2_5_omni_dit voxtral_realtime_encoder xcodec2 youtu", {"head_dim": 64}),
    ("axk2 minicpm3", {"head_dim": 32}),
    ("timesfm2_5", {"head_dim": 80}),
    ("mimo_v2_flash", {"head_dim": 192}),
    ("diffusion_gemma_text embedding_gemma2_text gemma gemma2 gemma3_text", {"head_dim": 256}),
    ("gemma3n_text gemma4_text gemma4_unified_text qwen3_5_moe_text qwen3_5_text qwen3_next", {"head_dim": 256}),
    ("qwen4_exp_text t5_gemma_module t5gemma2_decoder t5gemma2_text vaultgemma", {"head_dim": 256}),
    ("mistral4", {"head_dim": 128, "whole_head": True}),
    ("dots3_note_text", {"head_dim": 256, "whole_head": True}),
    ("deepseek_v4", {"head_dim": 512, "whole_head": True}),
    ("gptj codegen", {"rotary_dim": 64}),
    ("gemma3_text gemma3n_text t5gemma2_text t5gemma2_decoder", {"local_base": 10000.0}),
    ("olmo3", {"plain_local": True}),
    ("apertus cwm gpt_oss higgs_audio_v2 ministral3 mistral4 mistral_large4_text", {"scaled": True}),
    ("openai_privacy_filter", {"scaled": True}),
    ("gpt_neox bamba mimo_v2_flash", {"null_partial": True}),
)


def _merged() -> dict[str, ModelFacts]:
    facts_of: dict[str, dict[str, Any]] = {}
    for names, facts in _TABLE:
        for name in names.split():
            facts_of.setdefault(name, {}).update(facts)
    return {name: ModelFacts(**facts) for name, facts in facts_of.items()}


MODELS = _merged()
PLAIN = ModelFacts()  # a model_type that is not in the table, or none
