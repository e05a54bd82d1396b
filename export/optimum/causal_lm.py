"""``ShoalForCausalLM``: a bundle that transformers' ``generate`` and pipelines can use.

B rows   T columns   W vocab_size
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from optimum.modeling_base import OptimizedModel
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shoal.export.optimum.cache_name import CACHE
from shoal.export.optimum.context_cache import ContextCache
from shoal.export.pipeline import export_bundle
from shoal.export.writing.folder import replaced_folder
from shoal.graphs.contract import MANIFEST_FILE
from shoal.graphs.errors import InputError
from shoal.runtime import Model, open_bundle
from shoal.runtime.engine.session import Kernels

_ABOUT_THE_FILES = ("model_type", "quantization_config", "auto_map", "torch_dtype", "dtype")
"""Keys of config.json that say how the checkpoint was stored, not what the model is."""

_NOT_IN_A_BUNDLE = (
    "inputs_embeds",
    "labels",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
)
"""What models of transformers take and a bundle cannot; anything else they are handed is none of a
model's business, and differs from version to version."""


class ShoalForCausalLM(OptimizedModel, GenerationMixin):  # type: ignore[misc]
    """A bundle with the interface of transformers' causal language models, on the CPU.

    ``generate`` does greedy decoding, sampling and beam search, on batches padded on the left.
    Rows are computed one after another, each in a latent cache of its own.

    Args:
        model: an opened bundle.

    Attributes:
        model: the opened bundle.
        config: the checkpoint's config.json as transformers reads it.
        generation_config: the checkpoint's, if the bundle has one.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)
    output_modalities = ("text",)
    _is_stateful = True  # transformers' word for: no assisted generation

    def __init__(self, model: Model) -> None:
        # Pipelines look for the class by its name among those of transformers.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault("shoal", type(self).__name__)
        super().__init__(model, _config_of(model))
        self.generation_config = _generation_config_of(model, self.config)

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        export: bool = False,
        weights: str = "int8",
        block_size: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        kernels: Kernels = "auto",
        threads: int | None = None,
    ) -> ShoalForCausalLM:
        """Open a bundle, or export a checkpoint first.

        Args:
            model_id: a bundle folder; with ``export`` a Hugging Face folder (config.json and
                *.safetensors), a .gguf file, or ORG/NAME on the Hugging Face Hub.
            export: whether to export, to a temporary folder that is deleted with the model.
            weights: as in ``export_bundle``.
            block_size: as in ``export_bundle``.
            revision: of a checkpoint on the hub.
            token: for the hub.
            kernels: as in ``open_bundle``.
            threads: as in ``open_bundle``.

        Raises:
            ShoalError: see ``open_bundle`` and ``export_bundle``.
        """
        if not export:
            return cls(open_bundle(model_id, kernels=kernels, threads=threads))
        folder = Path(tempfile.mkdtemp(prefix="shoal-"))
        try:
            bundle = folder / "bundle"
            export_bundle(
                model_id,
                bundle,
                weights=weights,
                block_size=block_size,
                fidelity=False,
                revision=revision,
                token=token,
            )
            model = cls(open_bundle(bundle, kernels=kernels, threads=threads))
        except BaseException:
            shutil.rmtree(folder)
            raise
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: ContextCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
        *,
        past_key_values: ContextCache | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Read a batch of tokens.

        Args:
            input_ids: int64 [B,T].
            attention_mask: [B,S], 0 where there is padding, over the columns read before and now;
                None for no padding.
            cache: what the call before returned; columns are read after those.
            use_cache: whether to return the cache.
            logits_to_keep: columns at the end to compute logits for; 0 for all.
            return_dict: whether to return an object, else a tuple.
            past_key_values: ``cache`` as transformers called it before 5.24.
            options: what else transformers may hand to a model; makes no difference to this one.

        Returns:
            Logits float32 [B,T,W] (or fewer columns), zeros at padding; and the cache.

        Raises:
            InputError: ids or a mask that do not fit, or an option that a bundle does not have.
            RuntimeFailure: onnxruntime or memory failed.
        """
        _check_options(options)
        cache = past_key_values if cache is None else cache
        if cache is None:
            cache = ContextCache(self.model, input_ids.shape[0])
        real_BT = _real_tokens(input_ids, attention_mask, cache)
        num_logits = min(logits_to_keep, input_ids.shape[1]) or input_ids.shape[1]
        output = CausalLMOutputWithPast(
            logits=cache.read(input_ids, real_BT, num_logits),
            **{CACHE: None if use_cache is False else cache},
        )
        return output if return_dict else output.to_tuple()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return torch.float32

    def to(self, device: str | torch.device) -> ShoalForCausalLM:
        """Stay on the CPU.

        Raises:
            InputError: another device was asked for.
        """
        if torch.device(device).type != "cpu":
            raise InputError(f"device: bundles run on the CPU, found {device}; leave it out")
        return self

    def eval(self) -> ShoalForCausalLM:
        """The model itself: it cannot be trained."""
        return self

    @classmethod
    def can_generate(cls) -> bool:
        """Whether ``generate`` can be used: yes."""
        return True

    @classmethod
    def is_remote_code(cls) -> bool:
        """Whether this is code from the hub: no."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """Implementations of experts that transformers could switch between: none."""
        return {}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _save_config(self, save_directory: str | Path) -> None:
        """The manifest holds it already."""

    def _save_pretrained(self, save_directory: str | Path) -> None:
        bundle = self.model.bundle.folder
        with replaced_folder(Path(save_directory), force=True) as work:
            for name in (*self.model.manifest.files, MANIFEST_FILE):
                shutil.copyfile(bundle / name, work / name)


def _config_of(model: Model) -> PretrainedConfig:
    model_type = model.config["model_type"]
    values = {key: value for key, value in model.config.items() if key not in _ABOUT_THE_FILES}
    if model_type in CONFIG_MAPPING:
        return AutoConfig.for_model(model_type, **values)
    config = PretrainedConfig(**values)
    config.model_type = model_type
    return config


def _generation_config_of(model: Model, config: PretrainedConfig) -> GenerationConfig:
    if "generation_config.json" in model.manifest.files:
        return GenerationConfig.from_pretrained(str(model.bundle.folder))
    generation_config = GenerationConfig.from_model_config(config)
    generation_config.eos_token_id = list(model.manifest.model.eos_token_ids)
    return generation_config


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what would change an answer but cannot here.

    Raises:
        InputError: an option is set that a bundle does not have.
    """
    for name in _NOT_IN_A_BUNDLE:
        if options.get(name) is not None and options[name] is not False:
            raise InputError(f"{name}: a bundle takes token ids and gives logits; leave it out")


def _real_tokens(ids_BT: Tensor, mask_BS: Tensor | None, cache: ContextCache) -> Tensor:
    """Which tokens are no padding, bool [B,T].

    Raises:
        InputError: shapes that do not fit each other.
    """
    if ids_BT.dim() != 2 or ids_BT.shape[0] != len(cache.contexts):
        raise InputError(
            f"input_ids: expected shape [{len(cache.contexts)}, tokens], found {list(ids_BT.shape)}"
        )
    if mask_BS is None:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    expected = [ids_BT.shape[0], cache.get_seq_length() + ids_BT.shape[1]]
    if list(mask_BS.shape) != expected:
        raise InputError(
            f"attention_mask: expected shape {expected}, found {list(mask_BS.shape)}; give it for "
            "the columns in the cache too"
        )
    return mask_BS[:, -ids_BT.shape[1] :].bool()
